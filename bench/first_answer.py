"""One cold start, in a process whose only modules are the standard library's and those of one unpacked package:

    python -I -S -B first_answer.py FOLDER < BODY

Prints a JSON object: `imported` and `answered`, seconds since the import of function_app.py began, and the answer itself.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace


def main(folder: Path, body: bytes) -> None:
    """Time the first POST /api/classify of the package in `folder`. The search path is that of the Functions worker."""
    sys.path[:0] = [str(folder / ".python_packages" / "lib" / "site-packages")]
    sys.path.append(str(folder))
    started = time.perf_counter()
    app = importlib.import_module("function_app").app
    imported = time.perf_counter() - started
    functions = {function.get_function_name(): function.get_user_function() for function in app.get_functions()}
    # Part of azure.functions, which function_app.py has imported by now.
    request = importlib.import_module("azure.functions.http").HttpRequest(
        method="POST",
        url="https://example.com/api/classify",
        headers={"content-type": "application/json"},
        params={},
        route_params={},
        body_type="bytes",
        body=body,
    )
    handler = functions["classify"]
    # Ours takes the invocation's context, the published one does not.
    context = [SimpleNamespace(invocation_id="bench")] * (handler.__code__.co_argcount - 1)
    answer = handler(request, *context)
    answered = time.perf_counter() - started
    document = json.loads(answer.get_body())
    print(json.dumps({"imported": imported, "answered": answered, "status": answer.status_code, "answer": document}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.buffer.read())
