"""What is active: the built-in plugins and those of installed distributions, loaded once, with what each offers and where it is from."""

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib import import_module, machinery, metadata
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import pluggy

from mi_audit import hookspecs
from mi_audit.config import third_party_allowed
from mi_audit.errors import MiAuditError, PluginError
from mi_audit.hookspecs import GROUP, REPORT_FILE, EffectMaker, ModelSource, ProbeMethod, Renderer, SuiteFormat

BUILT_IN: Final = ("mi_audit.model.sources", "mi_audit.suites.formats", "mi_audit.detectors.methods", "mi_audit.causal.effects", "mi_audit.reporting.renderers")
"""Modules that register what is built in; named, not imported, so that asking for one kind from any room ties it to no other."""

_SOURCES: Final = (*machinery.SOURCE_SUFFIXES, *machinery.EXTENSION_SUFFIXES)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Plugin:
    """A module that offers something, and the distribution that it came with."""

    name: str
    module: str
    distribution: str
    version: str
    built_in: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the lines `<sha256>  <name>` of the source and extension files of the module's package, sorted by name.

        Raises:
            PluginError: they are not there as files.
        """
        root, files = _files(self.module)
        if not files:
            raise PluginError(f"the plugin {self} has no source files to digest; install it unpacked")
        lines = sorted((path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
        return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in lines).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Offer(Generic[_Value]):
    """One thing that a plugin offers under a name."""

    kind: str
    name: str
    value: _Value
    plugin: Plugin

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Whatever the plugin's code raises inside is an error that names the plugin; errors of ours, which say what to mend, pass through."""
        try:
            yield
        except MiAuditError:
            raise
        except (Exception, SystemExit) as error:  # the code is somebody else's: what it raises is a tool error, never a verdict
            raise PluginError(f"{self} failed: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return f"the {self.kind} {self.name!r} of the plugin {self.plugin}"


@dataclass(frozen=True)
class Registry:
    """All plugins, and what they offer by name; what is built in comes first."""

    plugins: tuple[Plugin, ...]
    model_sources: Mapping[str, Offer[ModelSource]] = field(repr=False)
    suite_formats: Mapping[str, Offer[SuiteFormat]] = field(repr=False)
    probe_methods: Mapping[str, Offer[ProbeMethod]] = field(repr=False)
    effects: Mapping[str, Offer[EffectMaker]] = field(repr=False)
    renderers: Mapping[str, Offer[Renderer]] = field(repr=False)

    @property
    def offers(self) -> Iterator[Offer[Any]]:
        """Everything that is offered, kind by kind."""
        for kind in (self.model_sources, self.suite_formats, self.probe_methods, self.effects, self.renderers):
            yield from kind.values()

    @property
    def third_party(self) -> tuple[Plugin, ...]:
        """The plugins that are not built in, in the order of their names."""
        return tuple(plugin for plugin in self.plugins if not plugin.built_in)

    def kinds(self, plugin: Plugin) -> tuple[str, ...]:
        """The kinds of things that a plugin offers."""
        return tuple(dict.fromkeys(offer.kind for offer in self.offers if offer.plugin == plugin))


def active() -> Registry:
    """The plugins of this process, loaded when first asked for.

    Raises:
        PluginError: a plugin can't be imported, does not fit the contract, or claims a name that another has; the message names it and its distribution.
    """
    return _of_process(third_party_allowed())


@cache
def _of_process(with_third_party: bool) -> Registry:
    return load(metadata.entry_points(group=GROUP) if with_third_party else ())


def load(entry_points: Iterable[metadata.EntryPoint]) -> Registry:
    """The built-in plugins and those of the entry points, in the order of distribution and name. Raises PluginError as `active` does."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    loaded: dict[Plugin, object] = {}
    for module in BUILT_IN:
        plugin = Plugin(module.removeprefix("mi_audit."), module, "mi-audit", import_module("mi_audit").__version__, built_in=True)
        loaded[plugin] = _registered(manager, plugin, partial(import_module, module))
    for entry in sorted(entry_points, key=lambda entry: (entry.dist.name if entry.dist else "", entry.name)):
        if entry.dist is None:
            raise PluginError(f"the plugin {entry.name!r} ({entry.value}) belongs to no distribution; install it with pip")
        plugin = Plugin(entry.name, entry.module, entry.dist.name, entry.dist.version)
        if plugin in loaded:
            raise PluginError(f"the plugin {plugin} is named twice in its distribution's entry points; keep one of them")
        loaded[plugin] = _registered(manager, plugin, entry.load)
    offered = _Offered(manager, loaded)
    return Registry(
        tuple(loaded),
        model_sources=offered.by("mi_audit_model_sources", "model source", r"[a-z][a-z0-9-]{1,63}"),
        suite_formats=offered.by("mi_audit_suite_formats", "suite format", r"\.[a-z0-9]{1,16}"),
        probe_methods=offered.by("mi_audit_probe_methods", "probe method", r"[a-z][a-z0-9_]{0,63}"),
        effects=offered.by("mi_audit_effects", "effect", r"[a-z][a-z0-9_]{0,63}"),
        renderers=offered.renderers(),
    )


def _registered(manager: pluggy.PluginManager, plugin: Plugin, load: Callable[[], object]) -> object:
    """The plugin's module, imported and held against the contract."""
    try:
        found = load()
        manager.register(found, name=f"{plugin.distribution}:{plugin.name}")
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = ", ".join(name for name in vars(hookspecs) if name.startswith("mi_audit_"))
        raise PluginError(f"the plugin {plugin} does not fit the contract: {_one_line(error)}; the hooks are {known}") from error
    except (Exception, SystemExit) as error:  # importing runs somebody else's code
        raise PluginError(f"the plugin {plugin} can't be imported from {plugin.module}: {type(error).__name__}: {error}; mend or uninstall it") from error
    if not manager.get_hookcallers(found):
        raise PluginError(f"the plugin {plugin} implements no hook; mark its functions with @hookimpl from mi_audit.hookspecs")
    return found


class _Offered:
    """Asks each plugin by itself, so that it is known whose each name is."""

    def __init__(self, manager: pluggy.PluginManager, loaded: Mapping[Plugin, object]) -> None:
        self._manager, self._loaded = manager, loaded

    def by(self, hook: str, kind: str, name: str, fits: Callable[[object], bool] = callable) -> dict[str, Offer[Any]]:
        """What all plugins offer through `hook`; each name must match the pattern `name`, each value must fit."""
        offers: dict[str, Offer[Any]] = {}
        for plugin, module in self._loaded.items():
            others = [other for other in self._loaded.values() if other is not module]
            for mapping in self._asked(hook, plugin, others):
                if not isinstance(mapping, Mapping):
                    raise PluginError(f"the plugin {plugin}: {hook} returned {type(mapping).__name__}; return a dict from names to {kind}s")
                for key, value in mapping.items():
                    offer = Offer(kind, key, value, plugin)
                    if not isinstance(key, str) or not re.fullmatch(name, key):
                        raise PluginError(f"{offer}: the name does not match {name}; see {hook} in mi_audit.hookspecs")
                    if not fits(value):
                        raise PluginError(f"{offer} is {type(value).__name__}, not what {hook} in mi_audit.hookspecs asks for")
                    if key in offers:
                        raise PluginError(f"two plugins claim the {kind} {key!r}: {offers[key].plugin} and {plugin}; uninstall one of them")
                    offers[key] = offer
        return offers

    def renderers(self) -> dict[str, Offer[Renderer]]:
        """Renderers, no two of which write one file."""
        offers: dict[str, Offer[Renderer]] = self.by("mi_audit_renderers", "renderer", r"(?!none$)[a-z][a-z0-9-]{0,63}", _is_renderer)
        files: dict[str, Offer[Renderer]] = {}
        for offer in offers.values():
            first = files.setdefault(offer.value.file, offer)
            if first is not offer:
                raise PluginError(f"{first} and {offer} both write {offer.value.file}; uninstall one of them")
        return offers

    def _asked(self, hook: str, plugin: Plugin, others: list[object]) -> list[object]:
        try:
            answer: list[object] = self._manager.subset_hook_caller(hook, others)()
        except (Exception, SystemExit) as error:
            raise PluginError(f"the plugin {plugin}: {hook} failed: {type(error).__name__}: {error}") from error
        return answer


def _is_renderer(value: object) -> bool:
    return isinstance(value, Renderer) and re.fullmatch(REPORT_FILE, value.file) is not None and callable(value.render)


def _files(module: str) -> tuple[Path, list[Path]]:
    """The source files of a module that was imported, or of its package where it is in one, and the folder that holds them."""
    names = [module.rsplit(".", count)[0] for count in range(module.count(".") + 1)]
    regular = [name for name in names if getattr(sys.modules.get(name), "__file__", None)]
    if not regular:
        return Path(), []
    file = Path(str(sys.modules[regular[-1]].__file__))
    if not hasattr(sys.modules[regular[-1]], "__path__"):
        return file.parent, [file] if file.is_file() else []
    inside = (path for path in file.parent.rglob("*") if path.name.endswith(_SOURCES) and path.is_file())
    return file.parent.parent, sorted(inside)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
