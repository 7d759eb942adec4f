"""spdk-rpc's plugin for the methods that pmcache has and SPDK has not.

    PYTHONPATH=python spdk-rpc -s SOCKET --plugin pmcache_rpc bdev_pmcache_get --name cache0

Required parameters are given by place, the others as options; what each means is in docs/rpc.md and in
`pmcache rpc METHOD --help`. The methods come from pmcache_rpc.json beside this file, which is made from
their declarations, and a test says when it is not in step with them:

    pmcache rpc --schema | python3 python/pmcache_rpc.py > python/pmcache_rpc.json
"""

import argparse
import json
import os
import sys

# What is not SPDK's is named so.
OWN = (
    "bdev_pmem_",
    "bdev_pmcache_",
    "pool_",
    "nbd_server_",
    "nbd_export_",
    "nvmf_delete_transport",
    "reactor_",
    "service_",
)

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pmcache_rpc.json")


def alternatives(schema):
    """The schema's alternatives, or itself; null, which stands for "not given", is none."""
    ways = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return [way for way in ways if way.get("type") != "null"]


def values(schema):
    """The strings that a parameter may be, if they can be listed."""
    found = [value for value in schema.get("enum", []) if value is not None]
    if "const" in schema:
        found.append(schema["const"])
    ways = alternatives(schema)
    if ways != [schema]:
        found += [value for way in ways for value in values(way)]
    return found


def kind(schema):
    """Its type, without null."""
    schema = alternatives(schema)[0]
    names = schema.get("type", "string")
    names = [names] if isinstance(names, str) else [name for name in names if name != "null"]
    return names[0]


def table(document):
    """What this plugin has to know of `pmcache rpc --schema`."""
    methods = []
    for method in document["methods"]:
        if not method["name"].startswith(OWN):
            continue
        schema = method["schema"] or {}
        required = schema.get("required", [])
        params = [
            {"name": name, "type": kind(one), "required": name in required, "values": values(one)}
            for name, one in schema.get("properties", {}).items()
        ]
        methods.append({"name": method["name"], "params": params})
    return {"methods": methods}


def text(document):
    """The table as a file: a line for each parameter."""
    lines = ['{"methods": [']
    for at, method in enumerate(document["methods"]):
        end = "," if at + 1 < len(document["methods"]) else ""
        params = ",\n".join("    " + json.dumps(param) for param in method["params"])
        params = f"\n{params}\n  " if params else ""
        lines.append(f'  {{"name": {json.dumps(method["name"])}, "params": [{params}]}}{end}')
    return "\n".join(lines + ["]}"])


TYPES = {
    "integer": int,
    "number": float,
    "string": str,
    "array": lambda words: [word for word in words.split(",") if word],
    "object": json.loads,
}


def add_param(parser, param):
    """One argument. Its place in the namespace is its own: spdk-rpc has a `timeout` and a `port` too."""
    name, place = param["name"], "pmcache_" + param["name"]
    option = "--" + name.replace("_", "-")
    if param["type"] == "boolean":
        action = argparse.BooleanOptionalAction
        parser.add_argument(option, dest=place, action=action, required=param["required"], default=None)
        return
    how = {"type": TYPES[param["type"]]}
    if param["values"]:
        how["choices"] = param["values"]
    else:
        how["metavar"] = name
    if param["required"]:
        parser.add_argument(place, **how)
    else:
        parser.add_argument(option, dest=place, **how)


def add_method(subparsers, method):
    """One method as a subcommand."""

    def call(args):
        given = {param["name"]: getattr(args, "pmcache_" + param["name"]) for param in method["params"]}
        params = {name: value for name, value in given.items() if value is not None}
        result = args.client.call(method["name"], params)
        print(result if isinstance(result, str) else json.dumps(result, indent=2))

    parser = subparsers.add_parser(method["name"], help="pmcache rpc %s --help" % method["name"])
    for param in method["params"]:
        add_param(parser, param)
    parser.set_defaults(func=call)


def spdk_rpc_plugin_initialize(subparsers):
    """What spdk-rpc calls to have the methods added."""
    with open(TABLE, encoding="utf-8") as file:
        methods = json.load(file)["methods"]
    for method in methods:
        add_method(subparsers, method)


if __name__ == "__main__":
    print(text(table(json.load(sys.stdin))))
