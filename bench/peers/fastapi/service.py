"""FastAPI without a response model: what is left of the framework is its routing."""

from digits import NPY, Digits
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()
model = Digits()


@app.post("/invocations")
async def invocations(request: Request) -> JSONResponse:
    if request.headers["content-type"] == NPY:
        return JSONResponse(model.answer_npy(await request.body()))
    return JSONResponse(model.answer((await request.json())["data"]))
