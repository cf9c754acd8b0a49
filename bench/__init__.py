import model_code  # noqa: F401  (ONNX Runtime's telemetry is off before anything here imports it)
