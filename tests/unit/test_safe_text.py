"""What others wrote is shown without obeying it, and secrets in addresses are refused without being repeated."""

import logging
import time
from itertools import product

import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.monitoring.log import logger, print_table, say, set_up_logging
from diffmm_dist.runs.config import load_config
from diffmm_dist.safe_text import message, refuse_secrets, without_secrets

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
    *(f"{mark}s3://AKIAKEY:SECRET@bucket" for mark in ("_", "1", "\u00e9", "--", "x.", "path=", "\u200b", "(", "s3:/")),
    "s3//AKIAKEY:SECRET@bucket",
    "s3/AKIAKEY:SECRET@bucket",
    "s3:AKIAKEY:SECRET@bucket/x",
    "s3:///AKIAKEY:SECRET@bucket",
    "s3:\\\\AKIAKEY:SECRET@bucket",
    "s3:\u200b//AKIAKEY:SECRET@bucket",
    "s3://AKIAKEY:/SECRET@bucket",
    "s3://AKIAKEY:12/SECRET@bucket",
    "s3://AKIAKEY:a'SECRET@bucket",
    "//AKIAKEY:SECRET@bucket",
    "AKIAKEY:SECRET@bucket",
    "AKIAKEY:SEC/RET@bucket/x",
    "x,AKIAKEY:SECRET@bucket",
    "12:30@home;AKIAKEY:SECRET@bucket",
    "run.path=AKIAKEY:SECRET@bucket",
    "\uff53\uff13\uff1a\uff0f\uff0fAKIAKEY:SECRET@bucket",
    "s3://AKIAKEY\uff1aSECRET\uff20bucket",
    "AKIAKEY\uff1aSECRET\ufe6bbucket",
    "s3%3A//AKIAKEY:SECRET@bucket",
    "s3%3A%2F%2FAKIAKEY%3ASECRET%40bucket",
    "s3\uff053A//AKIAKEY\uff053ASECRET%2540bucket",
    "https://AKIAKEY.host/x?sig=SECRET",
    "https://AKIAKEY.host/x?key=SECRET",
    "https://AKIAKEY.host/x?a=b&X-Amz-Signature=SECRET",
    "s3://bucket/AKIAKEY#aws_secret_access_key=SECRET",
    "s3://bucket/AKIAKEY;password=SECRET",
    "s3://bucket/AKIAKEY%3Bpassword%3DSECRET",
    "AKIAKEY,token=SECRET",
    "token=AKIAKEYSECRET",
    "--session-token=AKIAKEYSECRET",
    "s3.secret_key=AKIAKEYSECRET",
    "AWS_ACCESS_KEY_ID=AKIAKEYSECRET",
    "awsSecretAccessKey=AKIAKEYSECRET",
]
HARMLESS = [
    "s3://bucket/a@b:c", "http://head:8265", "http://head:8265/jobs", "see http://head:8265, and so on", "/data/a@b:c",
    "s3://bucket/x=1/y", "a: b", "s3://arn:aws:s3:eu-west-1:123:accesspoint/name/x", "epoch 3: s3://bucket: it is slow",
    "alice@example.com", "mailto:alice@example.com", "git@host.org/x", "model.name=x", "a:b", "a:b=c", "12:30@home",
    "2024-05-01T12:30:15@home", "C:\\x", "C:\\a@b\\c", "C:/a@b", "/data/a:b@c/x", "s3://bucket/a:b@c",
    "http://[::1]:8265", "http://head:8265,http://other:8265", "valid/recall@20=0.5", "{'recall@20': 0.5}",
    '{"a":"s3://b/x","b":"recall@20"}', "s3://bucket/token=1/part.parquet", "write section.key=value", "monkey=1",
    "signal=2", "num_tokens=3", "the token: it is at /x", "100%", "%zz@", "a@b@c", "s3:GetObject", "model=***",
    "a == b", "\u00e9: it is \uff08closed\uff09", "path: s3://bucket/x # as on 12:30", "train.epochs=3",
    "--split=test", "~/runs/x@y", "x:/y@z",
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


def test_a_text_of_any_length_is_looked_at_in_time_in_proportion():
    parts = [
        "a:/b/",
        "http://h:1/",
        "s3:",
        "a:",
        "@",
        "a@",
        "//a:",
        "=",
        "a=",
        "secret",
        "%25",
        "\u0301\u0316",
        ",",
        "12:30,",
    ]
    for part, end in product(parts, ["", "?@", " K:P@b", ",K:P@b", "K:P@b"]):
        begin = time.perf_counter()
        without_secrets("x" + part * (60_000 // len(part)) + end)
        assert time.perf_counter() - begin < 1, (part, end)


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_stay(text):
    refuse_secrets(text)
    assert without_secrets(text) == text


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "place", ["file", "escaped in a file", "key", "deep key", "comment", "extends", "override", "no setting"]
)
def test_secrets_in_a_configuration_are_never_repeated(tmp_path, secret, place):
    escaped = "".join(f"\\U{ord(sign):08x}" for sign in secret)
    texts = {
        "file": f"data: {{path: d}}\nrun: {{path: '{secret}'}}\n",
        "escaped in a file": f'data: {{path: d}}\nrun: {{path: "{escaped}"}}\n',
        "key": f'data: {{path: d}}\nrun: {{path: r}}\n"{escaped}": 1\n',
        "deep key": f'data: {{path: [{{a: [{{"{escaped}": 1}}]}}]}}\nrun: {{path: r}}\n',
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
