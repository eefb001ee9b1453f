"""What others wrote is shown without obeying it, and secrets in addresses are refused without being repeated."""

import logging

import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.log import logger, print_table, say, set_up_logging
from diffmm_dist.safe_text import message, refuse_secrets, without_secrets
from diffmm_dist.train.config import load_config

ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\x08\x7f\x9b31m\u202egnp.exe\u2028\udcff"
SECRETS = [
    "s3://AKIAKEY:SECRET@bucket/x",
    "s3://AKIAKEY:SEC/RET@bucket/x",
    "s3://AKIAKEY@bucket",
    "s3://AKIAKEY%3ASECRET%40bucket/x",
    "s3://AKIAKEY%253ASECRET%2540bucket/x",
    "s3://AKIAKEY:SECRET",
    "S3://AKIAKEY:SECRET@bucket",
    "s3a://AKIAKEY:SECRET@bucket",
    "s3:/AKIAKEY:SECRET@bucket",
    "s3:AKIAKEY:SECRET@bucket",
    "https://AKIAKEY:SECRET@host/x",
    "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=SECRET&AWSAccessKeyId=AKIAKEY",
    "s3://AKIAKEY: SECRET@bucket",
]
HARMLESS = [
    "s3://bucket/a@b:c", "http://head:8265", "http://head:8265/jobs", "see http://head:8265, and so on", "/data/a@b:c",
    "s3://bucket/x=1/y", "a: b", "s3://arn:aws:s3:eu-west-1:123:accesspoint/name/x", "epoch 3: s3://bucket: it is slow",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_found_and_left_out(secret):
    with pytest.raises(UserError) as error:
        refuse_secrets(secret)
    assert "AKIAKEY" not in str(error.value)
    assert "SECRET" not in str(error.value).replace("AWS_SECRET_ACCESS_KEY", "")
    if " " not in secret:
        shown = without_secrets(f"cannot read '{secret}': no")
        assert "AKIAKEY" not in shown
        assert "SECRET" not in shown


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_stay(text):
    refuse_secrets(text)
    assert without_secrets(text) == text


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("place", ["file", "escaped in a file", "comment", "extends", "override", "no setting"])
def test_secrets_in_a_configuration_are_never_repeated(tmp_path, secret, place):
    escaped = "".join(f"\\x{ord(sign):02x}" for sign in secret)
    texts = {
        "file": f"data: {{path: d}}\nrun: {{path: '{secret}'}}\n",
        "escaped in a file": f'data: {{path: d}}\nrun: {{path: "{escaped}"}}\n',
        "comment": f"# {secret.replace(' ', '')}\nbroken: [\n",
        "extends": f"extends: '{secret}'\n",
    }
    path = tmp_path / "c.yaml"
    path.write_text(texts.get(place, "data: {path: d}\nrun: {path: r}\n"))
    overrides = {"override": [f"run.path={secret}"], "no setting": [secret]}.get(place, [])
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    assert "AKIAKEY" not in str(error.value)
    assert "holds credentials" in str(error.value)


def test_secrets_on_the_command_line_are_refused_by_every_command(run_cli, tmp_path):
    for words in (
        ["inspect", SECRETS[0]],
        ["prepare", "synthetic", "--out", SECRETS[1]],
        ["train", SECRETS[2]],
        ["recommend", SECRETS[3], "--all", f"--out={SECRETS[0]}"],
        ["--no-such-option", SECRETS[0]],
    ):
        status, out, err = run_cli(*words)
        assert status in (1, 2)
        assert "holds credentials" in err
        assert "AKIAKEY" not in out + err


def plain(text):
    return all(character.isprintable() or character == "\n" for character in text)


def test_nothing_that_is_shown_is_obeyed(capsys):
    set_up_logging()
    handler = logger.handlers[0]
    handler.setStream(__import__("sys").stderr)
    logger.info("reading %s", ESCAPES)
    logger.log(logging.WARNING, ESCAPES)
    print_table(ESCAPES, ["", ESCAPES], [[ESCAPES, ESCAPES]])
    say(f"one{ESCAPES}\ntwo")
    captured = capsys.readouterr()
    assert plain(captured.out)
    assert plain(captured.err)
    assert "\\x1b]0;owned\\x07" in captured.err
    assert "\\x1b" in captured.out
    assert "\\u202e" in captured.out


def test_errors_are_shown_escaped_and_short(run_cli, tmp_path):
    for name in (ESCAPES.replace("\udcff", ""), "x" * 100_000):
        for words in (["inspect", name], ["train", "--config", name], ["recommend", name, "--users", name],
                      ["evaluate", name], [name], ["prepare", "tables", name, "--user", name, "--item", name,
                      "--out", str(tmp_path / "o")]):  # fmt: skip
            status, out, err = run_cli(*words)
            assert status in (1, 2)
            assert plain(out + err)
            assert len(err) < 6_000
            assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


def test_a_message_of_any_length_is_shortened():
    assert len(message("x" * 10**6)) < 5_000
    assert message("plain text, with é and 漢") == "plain text, with é and 漢"
