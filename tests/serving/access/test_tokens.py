"""The file of tokens: what it says, and what it says about mistakes in it."""

from __future__ import annotations

import hashlib
import os

import pytest

from normfold.serving.access.scopes import Scope
from normfold.serving.access.tokens import digest, line, new_token, read_tokens
from normfold.serving.errors import StartError

HASH = "sha256:" + hashlib.sha256(b"secret").hexdigest()


def test_a_line_that_was_made_for_a_token_reads_back(tmp_path):
    token = new_token()
    path = tmp_path / "tokens"
    path.write_text(
        f"# who\n\n{line('a@b', {Scope.READ, Scope.INFER}, ['m', 'n'], token)}\n  op read,admin * {HASH}  # all\n"
    )
    holders = read_tokens(path)
    assert set(holders) == {digest(token), digest("secret")}
    limited, all_models = holders[digest(token)], holders[digest("secret")]
    assert (limited.name, limited.scopes, limited.models) == ("a@b", {Scope.INFER, Scope.READ}, {"m", "n"})
    assert (all_models.name, all_models.scopes, all_models.models) == ("op", {Scope.READ, Scope.ADMIN}, None)
    assert token not in path.read_text()


def test_two_tokens_are_not_the_same_and_have_256_random_bits():
    one, other = new_token(), new_token()
    assert one != other
    assert len(one) == len("nf_") + 43  # 43 digits of base 64 are 258 bits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a infer *", "line 1: 3 words where 4 are expected: NAME SCOPES MODELS sha256:DIGEST"),
        ("secret", "line 1: 1 word where 4 are expected"),
        (f"# x\na infer,write * {HASH}", "line 2: 'write' is not a scope; there are infer, read, admin"),
        (f"a infer m,,n {HASH}", "line 1: '' is not a model's name"),
        (f"a infer ../m {HASH}", r"line 1: '\.\./m' is not a model's name; write \* for all models"),
        (f"-a infer * {HASH}", "line 1: '-a' is not a name"),
        ("a infer * secret", "line 1: the last word is not sha256: and 64 hexadecimal digits"),
        (f"a infer * {HASH.upper()}", "line 1: the last word is not sha256:"),
        (f"a infer * {HASH}\na read * {HASH[:-1]}0", "line 2: the name 'a' or its digest is there twice"),
        (f"a infer * {HASH}\nb read * {HASH}", "line 2: the name 'b' or its digest is there twice"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(StartError, match=words) as caught:
        read_tokens(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(StartError, match="cannot be read: No such file"):
        read_tokens(tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(StartError, match="it is not UTF-8 text"):
        read_tokens(tmp_path / "latin")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf# name scopes models digest\n")
    with pytest.raises(StartError, match=r"begins with a byte order mark \(BOM\): save it as UTF-8 without one"):
        read_tokens(tmp_path / "marked")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StartError, match="it is not a plain file"):
        read_tokens(tmp_path / "pipe")
    with pytest.raises(StartError, match=r"it is not a plain file|Is a directory"):
        read_tokens(tmp_path)
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 40)
    with pytest.raises(StartError, match="it is larger than 16777216 bytes"):
        read_tokens(tmp_path / "huge")


@pytest.mark.parametrize(("name", "models"), [("a b", []), ("a#", []), ("a", ["m n"]), ("a", ["*,m"])])
def test_a_name_that_the_file_cannot_hold_is_refused(name, models):
    with pytest.raises(ValueError, match=r"is not a (name|model's name)"):
        line(name, {Scope.READ}, models, "t")
