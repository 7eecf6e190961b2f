"""Prints what the pack tells a host's page about every node, as JSON on the last line. Run: describe_nodes.py COMFYUI PACK

The host's own packages that are not here are stood in for by empty modules: schemas need none of them.
"""

import asyncio
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types

ABSENT = (
    "alembic", "av", "blake3", "comfy_aimdo", "comfy_angle", "comfy_kitchen", "comfyui_embedded_docs",
    "comfyui_frontend_package",
    "comfyui_workflow_templates", "glslang", "kornia", "OpenGL", "pydantic_settings", "simpleeval", "spandrel", "sqlalchemy",
    "torchaudio", "torchsde", "torchvision",
)  # fmt: skip


class Anything(type):
    """A class that has every attribute, can be called, subclassed, indexed and combined."""

    def __getattr__(cls, name):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Nothing

    def __call__(cls, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else cls

    def __getitem__(cls, key):
        return cls

    def __or__(cls, other):
        return cls

    __ror__ = __or__

    def __iter__(cls):
        return iter(())


class Nothing(metaclass=Anything):
    pass


class Stub(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Nothing


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last finder that is asked: finds what the others did not."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        pass


def main() -> None:
    host, root = sys.argv[1:3]
    sys.path.insert(0, host)
    sys.argv[1:] = ["--cpu"]
    sys.meta_path.append(StandIns())
    for name in ("torchvision", "torchaudio"):  # one that does not fit PyTorch is as good as none
        try:
            importlib.import_module(name)
        except Exception:
            for module in [key for key in sys.modules if key.partition(".")[0] == name]:
                del sys.modules[module]
            sys.modules[name] = Stub(name)
            sys.meta_path.insert(0, Masked(name))
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location("any_folder_name", root + "/__init__.py", submodule_search_locations=[root])
    pack = importlib.util.module_from_spec(spec)
    sys.modules["any_folder_name"] = pack
    spec.loader.exec_module(pack)
    early = [name for name in sys.modules if name.startswith("any_folder_name.")]
    assert not early, f"the entry point imports {early[0]} too early"

    async def nodes():
        extension = await pack.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    described = {}
    for node in asyncio.run(nodes()):
        schema = node.GET_SCHEMA()
        assert schema.node_id not in described, schema.node_id
        described[schema.node_id] = node.GET_NODE_INFO_V1() | {"is_defined": callable(node.execute)}
    sys.stdout.write("\n" + json.dumps(described) + "\n")


class Masked(StandIns):
    """Stands in for a package that is there but broken."""

    def __init__(self, name):
        self.name = name

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.name or fullname.startswith(f"{self.name}."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None


if __name__ == "__main__":
    main()
