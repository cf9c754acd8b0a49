"""What runs in a cloud: the training job, the containers, and the serving core that the Function shares with them."""

import os

# The official builds of ONNX Runtime send what they see of a session to Microsoft, and keep an id of the machine below the home
# folder, unless this is set before they are imported (onnxruntime's Privacy.md, "Disabling Telemetry").
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
