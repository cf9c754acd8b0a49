"""The models that a multi-model container has in memory, by the names that SageMaker gives them.

All of it happens on the event loop but loading and releasing, which one thread of their own does one after another: requests
and /ping go on meanwhile, and what is asked about free memory still holds when the model is read. A model is in the table when
it has been verified to the end, and not before; it leaves the table before its requests are waited for.
"""

import asyncio
import base64
import binascii
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from model_code import environment
from model_code.container import memory
from model_code.inference import errors
from model_code.inference.predictor import Predictor
from model_code.inference.watchdog import Watchdog

PAGE_MODELS = 20
MAX_NAME = 1024
# What a model takes at most while it is loaded: its bytes, their parsed copy, weights laid out anew. Measured with dense layers
# and convolutions of 4 to 72 MB: 1.8 to 3.3 times the file, and up to 16 MB of small things; half of it once it is loaded.
_LOAD_FACTOR = 4
_LOAD_BYTES = 16 * 2**20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False)
class LoadedModel:
    """One model; `predictor` is None from the moment in which its memory is given back."""

    name: str
    url: str
    predictor: Predictor | None
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class LoadedModels:
    """Models out of folders below `folder`, as long as this process takes no more than `most_bytes` with them.

    `journal` is a file that says which models are loaded, so that a worker that takes a dead one's place can `restore` them:
    SageMaker does not know of workers and would go on to name models that nobody has.
    """

    def __init__(self, folder: Path, most_bytes: int, journal: Path, *, page_models: int = PAGE_MODELS) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._journal = journal
        self._page_models = page_models
        self._models: dict[str, LoadedModel] = {}
        self._names_in_change: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading")
        self._watchdog = Watchdog()

    async def restore(self) -> None:
        """Load what the journal names; a model that cannot be loaded any more is logged and left out."""
        for name, url in self._read_journal().items():
            try:
                await self.load(name, url)
            except errors.InferenceError as error:
                _log.error("the model %r is not restored: %s", name, error)

    async def load(self, name: str, url: str) -> LoadedModel:
        """Verify and load the model in the folder `url` under `name`.

        Raises ModelLoaded where there is one of this name, ResourcesExhausted where it does not fit, BadModel where it is
        none or lies elsewhere.
        """
        _check_name(name)
        directory = self._directory(url)
        async with self._change(name):
            if name in self._models:
                raise errors.ModelLoaded("model_name: a model of this name is loaded; unload it first")
            started = time.monotonic()
            predictor = await self._in_thread(self._load, directory)
            model = self._models[name] = LoadedModel(name, url, predictor)
            await self._in_thread(self._write_journal, self._urls())
        milliseconds = (time.monotonic() - started) * 1000
        _log.info("loaded %s as %r in %.0f ms", predictor.release_id, name, milliseconds)
        return model

    async def unload(self, name: str) -> LoadedModel:
        """Forget the model at once, wait for its requests, and return when its memory has been given back.

        Raises ModelNotLoaded.
        """
        async with self._change(name):
            model = self.find(name)
            del self._models[name]
            await self._in_thread(self._write_journal, self._urls())
            if model.in_flight:
                model.idle.clear()
                await model.idle.wait()
            await self._in_thread(_release, model)
        _log.info("unloaded %r", name)
        return model

    def find(self, name: str) -> LoadedModel:
        """Raises ModelNotLoaded."""
        model = self._models.get(name)
        if model is None:
            raise errors.ModelNotLoaded("no model of this name is loaded")
        return model

    @contextmanager
    def use(self, name: str) -> Iterator[Predictor]:
        """The predictor of a loaded model, which is not unloaded before this ends. Raises ModelNotLoaded."""
        model = self.find(name)
        if model.predictor is None:
            raise errors.ModelNotLoaded("no model of this name is loaded")
        model.in_flight += 1
        try:
            yield model.predictor
        finally:
            model.in_flight -= 1
            if not model.in_flight:
                model.idle.set()

    def page(self, token: str | None) -> tuple[list[LoadedModel], str | None]:
        """Models in the order of their names, and the token of the next page or None after the last one.

        `token` is what an earlier call gave; models that come and go between two calls move no other. Raises BadField.
        """
        after = "" if token is None else _read_token(token)
        names = sorted(name for name in self._models if name > after)
        page = names[: self._page_models]
        more = len(names) > len(page)
        return [self._models[name] for name in page], _token(page[-1]) if more else None

    @contextmanager
    def _directory_errors(self) -> Iterator[None]:
        # NUL bytes, and links that lead in a circle.
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise errors.BadModel("url: no path that can be followed") from error

    def _directory(self, url: str) -> Path:
        """The folder that `url` names, links resolved, if it lies below ours; nothing else is ever read."""
        with self._directory_errors():
            directory, folder = Path(url).resolve(), self._folder.resolve()
        if not url.startswith("/") or directory == folder or not directory.is_relative_to(folder):
            raise errors.BadModel("url: allowed is a folder below the one of the models, /opt/ml/models/<name>/model")
        return directory

    def _change(self, name: str) -> asyncio.Lock:
        """One load or unload of a name at a time: the second sees how the first one ended."""
        return self._names_in_change.setdefault(name, asyncio.Lock())

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _load(self, directory: Path) -> Predictor:
        needed = _LOAD_BYTES
        with suppress(OSError):  # then loading it says what is wrong
            needed += _LOAD_FACTOR * (directory / environment.MODEL_FILE).stat().st_size
        taken = memory.resident_bytes()
        if taken + needed > self._most_bytes:
            raise errors.ResourcesExhausted(
                f"loading it may take {_megabytes(needed)} MB, {_megabytes(taken)} of {_megabytes(self._most_bytes)} MB are "
                "taken; unload a model first"
            )
        try:
            return Predictor.load(directory, keep_memory=False, watchdog=self._watchdog)
        except errors.ModelInvalid as error:
            _log.error("the model in %s cannot be served: %s: %s", directory, error.code, error)
            raise errors.BadModel(f"the model cannot be served: {error.code}; the log has the reason") from error
        finally:
            memory.give_back()

    def _urls(self) -> dict[str, str]:
        return {model.name: model.url for model in self._models.values()}

    def _read_journal(self) -> Mapping[str, str]:
        try:
            urls: dict[str, str] = json.loads(self._journal.read_bytes())
        except FileNotFoundError:
            return {}
        return urls

    def _write_journal(self, urls: Mapping[str, str]) -> None:
        temporary = self._journal.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(urls))
            os.replace(temporary, self._journal)
        except OSError:
            # The model serves all the same; only a worker after this one would not know of it.
            _log.exception("the list of loaded models cannot be written")


def _release(model: LoadedModel) -> None:
    model.predictor = None
    memory.give_back()


def _check_name(name: str) -> None:
    """A name is opaque and only ever a key, but it has to fit into a URL: dots between slashes would be taken out of one."""
    if not 0 < len(name) <= MAX_NAME or _CONTROL.search(name) or {".", ".."} & set(name.split("/")):
        raise errors.BadModel(f"model_name: 1 to {MAX_NAME} characters, no control characters, no segment . or ..")


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode("utf-8", "surrogatepass")).decode()


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode("utf-8", "surrogatepass")
    except (binascii.Error, ValueError) as error:
        raise errors.BadField("next_page_token: give what nextPageToken was in the page before") from error


def _megabytes(size: int) -> int:
    return round(size / 2**20)
