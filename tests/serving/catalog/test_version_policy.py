"""The version policy of a config.pbtxt: only it changes, whatever else the text holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfold.serving.catalog import config
from normfold.serving.catalog.version_policy import described, with_policy
from normfold.serving.errors import ConfigError

PIECES = (
    "max_batch_size: 8",
    "# version_policy { all {} }",
    'parameters { key: "version_policy { all {} }" value { string_value: "}{ # no comment" } }',
    "parameters { key: 'it\\'s }' value { string_value: 'x' } }",
    "dynamic_batching { preferred_batch_size: [ 1, 2 ] }",
    "instance_group < count: 1 kind: KIND_CPU >",
)
POLICIES = (
    "version_policy { all {} }",
    "version_policy: { specific { versions: [1, 2] } }",
    "version_policy < latest < num_versions: 3 > >",
    "version_policy {\n  # a comment with }\n  specific { versions: 4 }\n}",
)


@given(
    before=st.lists(st.sampled_from(PIECES), unique=True),
    after=st.lists(st.sampled_from(PIECES), unique=True),
    policy=st.sampled_from([None, *POLICIES]),
    versions=st.sampled_from([None, [1], [3, 2]]),
)
def test_only_the_policy_changes(before, after, policy, versions):
    after = [piece for piece in after if piece not in before]
    text = "\n".join([*before, *([policy] if policy else []), *after])
    changed = with_policy(text, versions)
    for piece in (*before, *after):
        assert piece in changed
    expected, found = config.parse(text), config.parse(changed)
    expected.ClearField("version_policy")
    if versions is not None:
        expected.version_policy.specific.versions[:] = versions
    assert found == expected
    assert with_policy(changed, versions) == changed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the highest version"),
        ("version_policy { latest { num_versions: 2 } }", "the 2 highest versions"),
        ("version_policy { specific { versions: [2, 1] } }", "versions 1, 2"),
        ("version_policy { all {} }", "all versions"),
    ],
)
def test_a_policy_in_words(text, said):
    assert described(config.parse(text)) == said


def test_a_text_that_is_no_configuration_is_refused():
    with pytest.raises(ConfigError, match="line 1"):
        with_policy("max_batch_size = 8", [1])
