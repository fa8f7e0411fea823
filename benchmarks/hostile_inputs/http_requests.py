"""Bytes that a client sends on one connection: heads, framed bodies, forms and JSON."""

import base64
import io
import json
from random import Random

from PIL import Image

from benchmarks.hostile_inputs.mutations import mutate_some
from service.options import DetectParameters

_PATHS = (
    *(b"/detect", b"/detect", b"/detect", b"/detect/batch", b"/models", b"/livez", b"/metrics"),
    *(b"/detect/models", b"/model/registry", b"/infer/object_detection"),
    *(b"/docs", b"/" + b"a" * 5000, b"*", b"//x/../detect", b"/%00%ff", b"http://h/detect", b""),
)
_OPTIONS = (*(name.encode() for name in DetectParameters.model_fields), b"format", b"models")
_VALUES = (
    *(b"0.5", b"1", b"-1", b"true", b"nan", b"1e400", b"0.25,0.5,1", b"", b"%", b"%ff"),
    *(b"png", b"coco", b"blood_cells"),
    *(b"9" * 5000, b"x" * 1000, b"," * 20_000, b"1," * 20_000),
)
_FLOODS = (1, 10, 1000, 20_000)
_MAX_BYTES = 4_000_000


def _small_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 120, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = _small_jpeg()


def http_heads(rng: Random) -> bytes:
    """Return one or more requests whose heads have any fields, or bytes that are not HTTP."""
    if rng.random() < 0.05:
        return rng.choice(
            (rng.randbytes(2000), b"\x16\x03\x01" * 50, b"\r\n" * 50_000, b"\0" * 90_000)
        )
    copies = rng.choice((1,) * 9 + (100,))
    requests: list[bytes] = []
    for _ in range(rng.choice((1, 1, 1, 2, 31, 40))):
        requests.append(_request(rng))
        if copies * sum(map(len, requests)) > _MAX_BYTES:
            break
    return mutate_some(rng, (b"".join(requests) * copies)[:_MAX_BYTES])


def http_bodies(rng: Random) -> bytes:
    """Return a request with a body in one of the framings, true or false."""
    body = rng.choice((JPEG,) * 5 + (b"", JPEG[:100], bytes(100_000), rng.randbytes(1_000_000)))
    fields = [b"Content-Type: image/jpeg"] if rng.random() < 0.9 else []
    if rng.random() < 0.1:
        fields.append(rng.choice(_UPGRADES))
    if rng.random() < 0.1:
        fields.append(b"Expect: " + rng.choice((b"100-continue", b"200-ok")))
    if rng.random() < 0.05:
        fields.append(b"Content-Encoding: " + rng.choice((b"gzip", b"identity", b"br, gzip")))
    if rng.random() < 0.6:
        fields.append(b"Transfer-Encoding: " + rng.choice((b"chunked",) * 9 + (b"gzip, chunked",)))
        framed = _chunked(rng, body)
    else:
        framed = body
    if framed is body or rng.random() < 0.1:
        fields.append(b"Content-Length: " + _content_length(rng, len(framed)))
    path = b"/detect" + (_query(rng) if rng.random() < 0.5 else b"")
    head = request_head(rng, b"POST", path, fields)
    return mutate_some(rng, head + framed + rng.choice((b"", b"", b"", _request(rng))))


def http_forms(rng: Random) -> bytes:
    """Return a request with a multipart form."""
    boundary = rng.choice(
        (b"x",) * 9 + (b"b" * 70, b"-" * 70, b"b" * 5000, b"\r", b"", b"a b", b"\xff")
    )
    form = _form(rng, boundary)
    content_type = b"multipart/form-data; boundary=" + boundary
    if rng.random() < 0.1:
        content_type = rng.choice(
            (
                *(b"multipart/form-data", b"multipart/form-data; charset=nonsense; boundary=x"),
                b"multipart/form-data; boundary=x" + b"; a=b" * 5000,
                b'multipart/form-data; boundary="x\\"' + b"\\" * 1000,
            )
        )
    path = rng.choice((b"/detect", b"/detect/batch"))
    fields = [b"Content-Type: " + content_type, b"Content-Length: %d" % len(form)]
    return request_head(rng, b"POST", path, fields) + form


_IMAGE_PATHS = (
    *(b"/detect", b"/detect", b"/detect/batch", b"/detect?format=png", b"/detect?format=coco"),
    *(b"/detect/models?models=blood_cells", b"/infer/object_detection"),
)


def http_json(rng: Random) -> bytes:
    """Return a request with a JSON body."""
    fields = {_json_name(rng): _json_value(rng) for _ in range(rng.choice((0, 0, 0, 1, 2, 5)))}
    path = rng.choice(_IMAGE_PATHS)
    if rng.random() < 0.9:
        fields[b'"image"'] = _json_image(rng)
    if path.startswith(b"/infer") and rng.random() < 0.8:
        fields[b'"model_id"'] = b'"blood_cells"'
    parts = [name + b": " + value for name, value in fields.items()]
    body = mutate_some(rng, (b"{" + b", ".join(parts) + b"}")[:_MAX_BYTES])
    if rng.random() < 0.1:
        body = rng.choice((*_JSON_FLOODS, rng.randbytes(1000), b""))
    head = [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return request_head(rng, b"POST", path, head) + body


_JSON_FLOODS = (
    b"[" * 2_000_000,
    b'{"a":' * 500_000,
    b"[" + b"1," * 1_000_000 + b"1]",
    b"[" + b"{}," * 1_000_000 + b"{}]",
    b'{"image": "' + b"\\u00e4" * 500_000 + b'"}',
    b'{"image": ' + b"9" * 3_000_000 + b"}",
    b"{" + b",".join(b'"%d": 0' % index for index in range(200_000)) + b"}",
)


def _json_name(rng: Random) -> bytes:
    return b'"' + rng.choice((*_OPTIONS, *_OPTIONS, b"\\u0000", b"n" * 5000)) + b'"'


def _json_value(rng: Random) -> bytes:
    plain: tuple[object, ...] = (
        *(1, 0.5, True, None, "red", "0.5,1", [0.5, 1], ["RBC"], [1] * 12, {}, {"a": [1]}),
        *(-1, 10**400, "1" * 5000, [[]] * 300, ["x" * 300] * 300),
    )
    special = (b"NaN", b"-Infinity", b"1e999", b"1" * 100_000, b"[" * 150 + b"]" * 150)
    return rng.choice((*(json.dumps(value).encode() for value in plain), *special))


def _json_image(rng: Random) -> bytes:
    text = base64.b64encode(rng.choice((*(JPEG,) * 6, b"", bytes(2_000_000), JPEG[:99])))
    uri = rng.choice((b"",) * 8 + (b"data:image/jpeg;base64,", b"data:", b"data:" + b";a" * 9000))
    separators = rng.choice((b"",) * 12 + (b"\\r\\n", b" ", b"=", b"\\u0000"))
    step = rng.choice((76, 76, 76, 4, 1_000_000))
    text = separators.join(text[i : i + step] for i in range(0, len(text), step))
    image = b'"' + uri + text[:_MAX_BYTES] + b'"'
    copies = rng.choice((0, 2, 17, 900))
    several = b"[" + b", ".join([image] * min(copies, _MAX_BYTES // len(image))) + b"]"
    typed = b'{"type": "base64", "value": ' + image + b"}"
    return rng.choice((image, image, image, typed, several, b"7", b"{}"))


def http_tasks(rng: Random) -> bytes:
    """Return a request of Label Studio: tasks with images, and a labeling configuration."""
    count = rng.choice((1, 1, 1, 2, 5, 30, 0))
    tasks = b", ".join(_task(rng) for _ in range(count))
    if rng.random() < 0.05:
        tasks = b"{}, " * rng.choice((100, 50_000)) + b"[]"
    config = json.dumps(_labeling_config(rng)).encode()
    name = rng.choice((b"label_config",) * 9 + (b"schema",))
    body = b'{"tasks": [' + tasks + b'], "' + name + b'": ' + config + b"}"
    body = mutate_some(rng, body[:_MAX_BYTES])
    path = b"/label-studio/" + rng.choice((b"predict",) * 8 + (b"setup", b"webhook"))
    fields = [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return request_head(rng, b"POST", path, fields) + body


def _task(rng: Random) -> bytes:
    image = rng.choice((_TASK_IMAGE,) * 6 + (_json_image(rng), *_TASK_ADDRESSES))
    return b'{"id": ' + _json_value(rng) + b', "data": {"image": ' + image[:100_000] + b"}}"


_TASK_IMAGE = b'"data:image/jpeg;base64,' + base64.b64encode(JPEG) + b'"'
_TASK_ADDRESSES = (
    *(b'"http://169.254.169.254/latest"', b'"file:///etc/passwd"', b'"/data/../api"'),
    *(b'"/data/' + b"a" * 50_000 + b'"', b"[]", b'"//[::1]/data/a"', b'"s3://bucket/a"'),
)


def _labeling_config(rng: Random) -> str:
    labels = '<Label value="RBC"/>' * rng.choice((1, 1, 1, 2, 5000, 20_000))
    depth = rng.choice((0,) * 8 + (1000, 20_000))
    threshold = rng.choice(("", "", 'model_score_threshold="0"', 'model_score_threshold="1e999"'))
    config = (
        rng.choice(("",) * 8 + _DOCUMENT_TYPES)
        + "<View>" * depth
        + '<View><Image name="i" value="$image"/>' * rng.choice((1, 1, 1, 3000))
        + f'<RectangleLabels name="b" toName="i" {threshold}>{labels}</RectangleLabels></View>'
        + "</View>" * depth
    )
    return config if rng.random() < 0.9 else config[: rng.randrange(len(config))]


_DOCUMENT_TYPES = (
    '<!DOCTYPE a [<!ENTITY x "' + "x" * 1000 + '">]>',
    "<!DOCTYPE a ["
    + "".join(f'<!ENTITY e{i} "&e{i - 1};&e{i - 1};">' for i in range(1, 30))
    + "]>",
    '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
    '<?xml version="1.0" encoding="utf-16"?>',
)


_UPGRADES = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Upgrade: " + b"h2c, " * 1000,
)


def request_head(rng: Random, method: bytes, path: bytes, fields: list[bytes]) -> bytes:
    """Return the head of a request, in most cases of HTTP/1.1."""
    version = b"1.1" if rng.random() < 0.9 else rng.choice((b"1.0", b"2.0", b"0.9", b"x"))
    lines = [b"%s %s HTTP/%s" % (method, path, version), b"Host: localhost", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _request(rng: Random) -> bytes:
    method = rng.choice(
        (b"GET", b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI", b"X" * 999)
    )
    path = rng.choice(_PATHS) + _query(rng)
    fields = [_field(rng) for _ in range(rng.choice((0, 1, 3, 10)))]
    return request_head(rng, method, path, fields)


def _query(rng: Random) -> bytes:
    """Return a query string with options, repeated ones or many different names; mostly none."""
    if rng.random() < 0.6:
        return b""
    count = rng.choice((1, 1, 2, 300, 12_000))
    kind = rng.randrange(4)
    if kind == 0:
        return b"?" + b"&".join(b"%x" % index for index in range(count))
    if kind == 1:
        return b"?" + rng.choice((b"&", b"a=1&", b"classes=a&", b"scales=1&")) * min(count, 5000)
    options = [rng.choice(_OPTIONS) + b"=" + rng.choice(_VALUES) for _ in range(min(count, 3))]
    return b"?" + b"&".join(options)


def _field(rng: Random) -> bytes:
    size = rng.choice((1, 100, 8000, 60_000, 70_000) if rng.random() < 0.2 else (1, 100))
    return rng.choice(
        (
            b"X: " + b"x" * size,
            b"x" * size + b": 1",
            b"\r\n".join([b"X-%d: 1" % index for index in range(rng.choice(_FLOODS[:3]))]),
            b"Content-Length: " + rng.choice((b"0", b"1", b"-1", b"9" * 40, b"0x1", b"1, 1")),
            b"Transfer-Encoding: " + rng.choice((b"chunked", b"identity", b"chunked, chunked")),
            b"Connection: " + rng.choice((b"close", b"keep-alive", b"close, " * 200)),
            b"Authorization: Bearer " + b"k" * size,
            b"X-Forwarded-For: " + b"1.2.3.4, " * (size // 9 + 1),
            b"X-Request-ID: " + rng.choice((b"a", b"\xff\xfe", b"x" * size)),
            b"X-Deadline-Ms: " + rng.choice((b"0", b"1", b"nan", b"1e400", b"-1", b"9" * 9000)),
            b"X-Priority: " + rng.choice((b"high", b"x", b"9" * 300)),
            b"traceparent: "
            + rng.choice((b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"x" * size)),
            b"Accept: " + b"*/*;q=0.1, " * (size // 10 + 1),
            b"Origin: " + b"http://" + b"o" * size,
            b" folded: " + b"x" * size,
            b"no colon",
            b"Cookie: " + b"a=b; " * (size // 6 + 1),
            rng.choice(_UPGRADES),
        )
    )


def _content_length(rng: Random, size: int) -> bytes:
    if rng.random() < 0.7:
        return b"%d" % size
    return rng.choice(
        (
            b"0",
            b"%d" % (size // 2),
            b"%d" % (size + 9),
            b"99999999999",
            b"9" * 100,
            b"-5",
            b"+5",
            b"",
            b"0" * 5000 + b"3",
        )
    )


def _chunked(rng: Random, body: bytes) -> bytes:
    """Return the body in chunks, with extensions and trailers."""
    size = rng.choice((len(body) or 1, 1000, 7, 1))
    extension = rng.choice((b"",) * 5 + (b";a=b", b";" + b"e" * 5000, b";" + b"e" * 200_000))
    zeros = rng.choice((b"",) * 5 + (b"0" * 10, b"0" * 100_000))
    overhead = len(zeros) + len(extension) + 8
    body = body[: _MAX_BYTES // (1 + overhead // size)]
    chunks = [
        zeros + b"%x" % len(part) + extension + b"\r\n" + part + b"\r\n"
        for start in range(0, len(body), size)
        if (part := body[start : start + size])
    ]
    last = rng.choice(
        (b"0\r\n",) * 6 + (b"0;" + b"x" * 100_000 + b"\r\n", b"", b"fffffffff\r\n", b"-1\r\n")
    )
    trailers = rng.choice(
        (b"",) * 5 + (b"a:b\r\n" * rng.choice(_FLOODS), b"T: " + b"t" * 90_000 + b"\r\n")
    )
    return b"".join(chunks) + last + trailers + b"\r\n"


def _form(rng: Random, boundary: bytes) -> bytes:
    parts = [_part(rng) for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2, 17)))]
    if rng.random() < 0.15:
        parts = [rng.choice(parts or [b"\r\n"])[:1000]] * rng.choice((100, 5000, 60_000))
    delimiter = b"--" + boundary + b"\r\n"
    while parts and sum(map(len, parts)) + len(parts) * len(delimiter) > _MAX_BYTES:
        parts = parts[: len(parts) // 2]
    body = b"".join(delimiter + part + b"\r\n" for part in parts)
    preamble = rng.choice((b"",) * 6 + (b"preamble\r\n" * 5000, b"\r\n" * 100_000, b"--" * 50_000))
    end = rng.choice(
        (b"--" + boundary + b"--\r\n",) * 8 + (b"", b"--" + boundary, b"\r\n--" * 50_000)
    )
    return mutate_some(rng, preamble + body + end)


def _part(rng: Random) -> bytes:
    name = rng.choice((b"image",) * 6 + (b"file", b"n" * 5000, b"\xff", b'"', b""))
    filename = rng.choice(
        (b'; filename="a.jpg"',) * 6 + (b"", b'; filename="' + b"f" * 5000 + b'"')
    )
    fields = [b'Content-Disposition: form-data; name="' + name + b'"' + filename]
    if rng.random() < 0.1:
        fields = [b"X-%d: a" % index for index in range(rng.choice(_FLOODS))] + fields
    if rng.random() < 0.05:
        fields.append(b"X: " + b"x" * 200_000)
    if rng.random() < 0.1:
        fields[-1] += b"; a=b" * 2000
    content = rng.choice(
        (
            *(JPEG,) * 9,
            b"",
            JPEG[:99],
            b"\r\n--" * 20_000,
            b"\r" * 100_000,
            rng.randbytes(100_000),
        )
    )
    return b"\r\n".join(fields) + b"\r\n\r\n" + content
