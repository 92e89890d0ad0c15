#!/usr/bin/env python3
"""Writes the tables beside it, and ../protobuf/numbers.txt, from what Kubernetes publishes of its types.

    generate.py SWAGGER SOURCES

SWAGGER is Kubernetes' OpenAPI v2 document (api/openapi-spec/swagger.json of a release). SOURCES is a folder with the Go
modules of the same release: api, apimachinery, kube-aggregator, apiextensions-apiserver. The document tells lists, keys,
strategies and unions; only the tags of Go's structs tell pointers, what is written when it is absent, defaults and numbers.
Run it for a new release; nothing reads these sources when Gantry is built or tested.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

SWAGGER, SOURCES = Path(sys.argv[1]), Path(sys.argv[2])
HERE = Path(__file__).parent
FOLDERS = {
    "io.k8s.api.": "api/",
    "io.k8s.apimachinery.": "apimachinery/",
    "io.k8s.kube-aggregator.": "kube-aggregator/",
    "io.k8s.apiextensions-apiserver.": "apiextensions-apiserver/",
}
# Types that JSON writes as something else than their fields.
SCALARS = {"Time": "time", "MicroTime": "time", "Quantity": "quantity", "IntOrString": "number"}
LOOSE = {"FieldsV1", "RawExtension", "JSON", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrStringArray"}

definitions = json.loads(SWAGGER.read_text())["definitions"]


def short(name):
    for prefix in ("io.k8s.api.", "io.k8s.apimachinery.pkg.apis."):
        if name.startswith(prefix):
            return name[len(prefix):]
    return name


def folder(package):
    for prefix, at in FOLDERS.items():
        if package.startswith(prefix):
            return SOURCES / at / package[len(prefix):].replace(".", "/")
    return None


FIELD = re.compile(r"^\s*(?:(\w+)\s+)?([\w.*\[\]{}]+)\s+`(.*)`")


def structs(package):
    """The structs of a package: name -> [(is embedded, Go type, tags, markers)], or the name of the type that it is."""
    found = {}
    for path in sorted(folder(package).glob("*.go")):
        if path.name.startswith("zz_") or path.name.endswith("_test.go") or path.name == "generated.pb.go":
            continue
        name, markers, comment = None, [], False
        for line in path.read_text().splitlines():
            opened = re.match(r"^type (\w+) struct \{$", line)
            same = re.match(r"^type (\w+) =? ?v1\.(\w+)$", line)
            if opened:
                name = opened.group(1)
                found[name] = []
            elif same:
                found[same.group(1)] = f"{package.rsplit('.', 1)[0]}.v1.{same.group(2)}"
            elif line == "}":
                name = None
            elif comment:
                comment = "*/" not in line
            elif name and line.strip().startswith("//"):
                markers.append(line.strip().lstrip("/").strip())
            elif name and line.strip().startswith("/*"):
                comment = "*/" not in line
            elif name and (field := FIELD.match(line)):
                tags = dict(re.findall(r'(\w+):"([^"]*)"', field.group(3)))
                found[name].append((field.group(1) is None, field.group(2), tags, markers))
                markers = []
            elif not line.strip():
                markers = []
    return found


PACKAGES = {}


def fields(name):
    """Fields of a type as JSON has them: (json name, Go type, omitempty, omitzero, markers, numbers), where `numbers` leads
    through the embedded messages that hold the field."""
    package, kind = name.rsplit(".", 1)
    if package not in PACKAGES:
        PACKAGES[package] = structs(package) if folder(package) and folder(package).is_dir() else {}
    known = PACKAGES[package].get(kind, ())
    if isinstance(known, str):
        yield from fields(known)
        return
    for embedded, go, tags, markers in known:
        parts = tags.get("json", "").split(",")
        number = re.match(r"\w+,(\d+)", tags.get("protobuf", ""))
        number = int(number.group(1)) if number else None
        if go.endswith("TypeMeta"):
            continue
        if embedded and (parts[0] == "" or "inline" in parts):
            other = go.lstrip("*")
            inner = f"{package}.{other}" if "." not in other else f"{package.rsplit('.', 1)[0]}.{other}"
            for *told, numbers in fields(inner):
                yield (*told, (number, *numbers))
        elif parts[0] not in ("", "-"):
            yield (parts[0], go, "omitempty" in parts, "omitzero" in parts, markers, (number,))


def numbered(held):
    """`a=1 b=2 3(c=1,d=2)` for fields and the numbers that lead to them."""
    row, inner = {}, defaultdict(list)
    for field, (first, *rest) in held:
        if rest:
            row[first] = None
            inner[first].append((field, rest))
        else:
            row[first] = f"{field}={first}"
    return [entry or f"{number}({','.join(numbered(inner[number]))})" for number, entry in row.items()]


def shape(schema):
    if "$ref" in schema:
        target = schema["$ref"].rsplit("/", 1)[-1]
        last = target.rsplit(".", 1)[-1]
        if last in SCALARS:
            return SCALARS[last]
        if last in LOOSE:
            return "any"
        return shape(definitions[target]) if "properties" not in definitions[target] else "struct"
    kind = schema.get("type")
    if kind == "string" and schema.get("format") == "byte":
        return "bytes"
    return {"array": "list", "object": "map", None: "any"}.get(kind, "scalar")


tables = defaultdict(lambda: defaultdict(list))
defaults, unions, groups, numbers = [], [], {}, []
for name in sorted(definitions):
    definition = definitions[name]
    properties = definition.get("properties", {})
    gvk = definition.get("x-kubernetes-group-version-kind", [])
    if len(gvk) == 1:
        groups[name.split(".")[-3]] = gvk[0]["group"]
    if "x-kubernetes-unions" in definition:
        unions.append(f"{short(name)} {json.dumps(definition['x-kubernetes-unions'], separators=(',', ':'), sort_keys=True)}")
    if not properties or ({"items", "metadata"} <= set(properties) and gvk):
        continue
    if definition.get("x-kubernetes-map-type"):
        tables["types"][short(name)].append(definition["x-kubernetes-map-type"])
    for field in sorted(properties):
        told = properties[field]
        row = [
            told.get("x-kubernetes-list-type") or told.get("x-kubernetes-map-type") or "-",
            "+".join(told.get("x-kubernetes-list-map-keys", [])) or "-",
            told.get("x-kubernetes-patch-strategy", "-").replace(",", "+"),
            told.get("x-kubernetes-patch-merge-key", "-"),
        ]
        if row != ["-"] * 4:
            tables["lists"][short(name)].append(":".join([field] + row))
    seen, required = {}, definition.get("required", [])
    if "metadata" in properties and required:
        tables["required"][short(name)] = required
    for field, go, omitempty, omitzero, markers, path in fields(name):
        if field not in properties:
            continue
        seen[field] = path
        what, pointer = shape(properties[field]), go.startswith("*")

        def put(table):
            tables[table][short(name)].append(field)

        if pointer:
            # An object or list that was set is always written; only of scalars the zero would be left out.
            if what in ("scalar", "bytes"):
                put("pointers")
            if not omitempty:
                put("nulls")
        elif what == "struct":
            if not omitzero:
                put("structs")
        elif what == "time":
            if not omitzero:
                put("nulls")
        elif what in ("quantity", "number"):
            if not omitzero and field not in required:
                put("zeros")
        elif what in ("list", "map", "bytes"):
            if not omitempty:
                put("nulls")
        elif what == "scalar":
            # What OpenAPI requires, and a name that is "" by default, is written unless Go leaves it out.
            is_required = field in required or any(marker == '+default=""' for marker in markers)
            if omitempty == is_required:
                put("omitted" if omitempty else "zeros")
        elif what == "any" and not omitzero:
            if go.endswith("RawExtension") or not omitempty:
                put("nulls")
        given = [marker[len("+default="):] for marker in markers if marker.startswith("+default=")]
        if given and not given[0].startswith("ref("):
            defaults.append(f"{short(name)} {field} {json.dumps(json.loads(given[0]), separators=(',', ':'))}")
    missing = set(properties) - set(seen) - {"apiVersion", "kind"}
    if missing:
        print(f"not found in the sources: {name}: {sorted(missing)}", file=sys.stderr)
    if seen and all(None not in path for path in seen.values()):
        numbers.append(f"{short(name)} {' '.join(numbered(seen.items()))}")


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))


for table in ("lists", "pointers", "structs", "nulls", "zeros", "omitted", "required", "types"):
    write(HERE / f"{table}.txt", (f"{name} {' '.join(row)}" for name, row in sorted(tables[table].items())))
write(HERE / "defaults.txt", defaults)
write(HERE / "unions.txt", unions)
write(HERE / "groups.txt", (f"{package} {group or '-'}" for package, group in sorted(groups.items())))
write(HERE.parent / "protobuf" / "numbers.txt", numbers)
