"""Answers a golden request from an unpacked package: `python -I -S -B package_probe.py FOLDER`, exit code 0 or a reason.

The self-test of `ferry package` runs it in a process whose only modules are the standard library's and the package's, found
in the order of the Functions worker. Hence no import of ours by name: what the package lacks must be missing here, too.
"""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace


def main(folder: Path) -> str | None:
    """None, or what is wrong with the package's answer."""
    sys.path += [str(folder / ".python_packages" / "lib" / "site-packages"), str(folder)]
    http_request = importlib.import_module("azure.functions").HttpRequest
    parse_model_json = importlib.import_module("model_code.inference.contract").parse_model_json
    functions = importlib.import_module("function_app").app.get_functions()
    handlers = {function.get_trigger().route: function.get_user_function() for function in functions}
    context = SimpleNamespace(invocation_id="self-test")

    health = handlers["health"](http_request("GET", "/api/health", body=b""), context)
    if health.status_code != 200:
        return f"/api/health answers {health.status_code}: {health.get_body().decode()}"

    # Without its library the core gives the same answers, only later.
    read_arrays = importlib.import_module("model_code.inference.arrays").read_arrays
    if read_arrays(b"[[1]]", 0, 5, (1, 1), fewer=True, raw=False) is None:
        return "model_code/inference/libarrays.so cannot be loaded"

    # No golden request is an image or needs an error, so that nothing else would miss a library of these before a caller does.
    for module in ("PIL.PngImagePlugin", "PIL.JpegImagePlugin", "model_code.inference.json_document"):
        importlib.import_module(module)

    signature = parse_model_json((folder / "release" / "model.json").read_bytes()).signature
    body = json.dumps({"data": signature.golden.inputs.tolist()}).encode()
    headers = {"content-type": "application/json"}
    answer = handlers["classify"](http_request("POST", "/api/classify", headers=headers, body=body), context)
    labels = [signature.labels[index] for index in signature.golden.outputs.argmax(axis=1).tolist()]
    if answer.status_code != 200 or json.loads(answer.get_body()).get(signature.response_key) != labels:
        return f"/api/classify answers {answer.status_code}: {answer.get_body().decode()}; expected labels: {labels}"
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
