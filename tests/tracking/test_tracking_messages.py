"""What a server or a proxy says of its trouble, in one sentence."""

import pytest
from mlflow.exceptions import MlflowException

from dira_dist.tracking.server import in_one_sentence

_REFUSED = (
    "API request to http://ml:5000/api/2.0/mlflow/runs/get failed with exception HTTPConnectionPool(host='ml', "
    "port=5000): Max retries exceeded with url: /api/2.0/mlflow/runs/get?run_id=1 (Caused by NewConnectionError("
    "\"HTTPConnection(host='ml', port=5000): Failed to establish a new connection: [Errno 111] Connection refused\"))"
)
_LATE = (
    "HTTPSConnectionPool(host='ml.example.org', port=443): Max retries exceeded with url: /x (Caused by "
    "ReadTimeoutError(\"HTTPSConnectionPool(host='ml.example.org', port=443): Read timed out. (read timeout=60)\"))"
)
_PAGE = (
    "API request to endpoint /api/2.0/mlflow/runs/log-batch failed with error code 502 != 200. Response body: '<html>"
    "\r\n<head><title>502 Bad\nGateway</title></head>\r\n<body><center>nginx</center></body></html>'"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (_REFUSED, "ml:5000 does not answer: Connection refused"),
        (_REFUSED[: _REFUSED.index('"HTTPConnection')], "ml:5000 does not answer: NewConnectionError"),
        (_LATE, "ml.example.org:443 does not answer: timed out"),
        (_PAGE, "the server, or a proxy before it, answered 502: 502 Bad Gateway"),
        ("503 Server Error: <!DOCTYPE html><p>", "the server, or a proxy before it, answered 503: a page of HTML"),
        ("No space\n left", "No space left"),
        ("see http://anna:geheim@ml/x", "see http://ml/x"),
        ("", "MlflowException"),
    ],
)
def test_one_sentence_with_address_or_status(text: str, words: str) -> None:
    assert in_one_sentence(MlflowException(text)) == words
    assert len(in_one_sentence(MlflowException("x" * 999))) == 300
