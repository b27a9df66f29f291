"""Keys, passwords and tokens are found by name and by form, and shown nowhere."""

import time

import pytest

from lore.config.secrets import HIDDEN, looks_like_key, mask, secret_places, without_secrets
from lore.engines.config import EndpointSection

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"
SECRETS = [
    ({"headers": {"Authorization": "Bearer abcdef123"}}, "headers.Authorization"),
    ({"token": "hunter2"}, "token"),
    ({"auth": "x"}, "auth"),
    ({"x-api-key": "abc"}, "x-api-key"),
    ({"apiKey": "abc"}, "apiKey"),
    ({"OpenAIKey": "abc"}, "OpenAIKey"),
    ({"a": [{"password": 1234}]}, "a.0.password"),
    ({"cookie": "a=b"}, "cookie"),
    ({"clientSecret": "x"}, "clientSecret"),
    ({"private_key": "x"}, "private_key"),
    ({"awsSecretAccessKey": "x"}, "awsSecretAccessKey"),
    ({"Ocp-Apim-Subscription-Key": "x"}, "Ocp-Apim-Subscription-Key"),
    ({"google_application_credentials": "x"}, "google_application_credentials"),
    ({"chat_template_kwargs": {"deep": [{"y": {"access_token": "abc"}}]}}, "chat_template_kwargs.deep.0.y.access_token"),
    ({"h": [{"name": "x-api-key", "value": "abc"}]}, "h.0.value"),
    ({"h": [["Authorization", "abc"]]}, "h.0.1"),
    ({"h": [{"Name": "Authorization", "Value": "abc"}]}, "h.0.Value"),
    ({"h": [{"header": "Authorization", "content": "abc"}]}, "h.0.content"),
    ({"sk-abcdefgh1234": 1}, "[key]"),
    *(
        ({name: "abc"}, name)
        for name in ("authtoken", "HFTOKEN", "API_TOKEN_1", "token2", "access_tokens", "pass", "pw", "sig", "signature", "ａpiKey")
    ),
    *(
        ({"user": value}, "user")
        for value in (
            "sk-very-secret",
            "hf_abcdefghijklmnop",
            "ghp_abcdefgh12345",
            "AKIAIOSFODNN7EXAMPLE",
            JWT,
            "x9Kf83hsLq02mZpR7vTn4bYc",
            "d41d8cd98f00b204e9800998ecf8427e",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "https://me:pw@host/x",
            "https://host/x?api_key=abc&y=1",
            "https://host/x?y=1&token=abc",
            "Authorization: Basic dXNlcjpwYXNz",
            "X-Api-Key: abc",
            "Token abcdef1234567890",
            "Bearer%20abcdefgh",
            "https://host/x?sv=2020&sig=abc%3D",
            "csk-abcdefghijklmnop",
            '{"a": [{"api_key": "abc"}]}',
            "-----BEGIN RSA PRIVATE KEY-----\nabc",
        )
    ),
]
PLAIN = [
    {"service_tier": "flex", "user": "team-search"},
    {"chat_template_kwargs": {"enable_thinking": False, "eos_token": "<|im_end|>"}},
    {"min_tokens": 3, "stop_token_ids": [1, 2], "skip_special_tokens": True, "thinking_token_budget": 5},
    {"logit_bias": {"50256": -100}, "prompt_cache_key": "shop", "tokenizer": "x/y"},
    {"user": "550e8400-e29b-41d4-a716-446655440000"},
    {"models": ["openai/gpt-4o-2024-08-06", "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8"]},
    {"metadata": [{"key": "region", "value": "eu"}]},
    {"note": "token: the smallest part of a text; a key: value", "token": None, "auth": True},
    {"guided_json": {"type": "object", "properties": {"token": {"type": "string"}}, "required": ["token", "key"]}},
    {"eostoken": "</s>", "forward_pass": 1, "stop_tokens": ["</s>"], "sort_keys": "a", "notes": [{"name": "shop", "content": "x"}]},
    {"lora": "judges/shop-2025-qwen3-8b-step-1200", "seed_id": "12345678901234567890123"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "schema": {"type": "object"}}}},
]


@pytest.mark.parametrize(("extra", "place"), SECRETS, ids=[place + str(extra)[-20:] for extra, place in SECRETS])
def test_a_key_in_the_additional_fields_is_refused_by_its_path_and_never_shown(extra, place):
    assert list(secret_places(extra)) == [place]
    with pytest.raises(ValueError, match="no key, because the recipe is stored") as refused:
        EndpointSection(url="http://a/v1", model="m", extra=extra)
    said = refused.value.errors(include_url=False)[0]["msg"]
    assert f"look at {place})" in said
    assert HIDDEN in str(without_secrets(extra))


@pytest.mark.parametrize("extra", PLAIN, ids=str)
def test_plain_fields_are_taken(extra):
    assert EndpointSection(url="http://a/v1", model="m", extra=extra).extra == extra
    assert without_secrets(extra) == extra


@pytest.mark.parametrize("name", ["hf_abcdefghijklmnop", "ghp_abcdefgh12345", "AKIAIOSFODNN7EXAMPLE", "x9Kf83hsLq02mZpR7vTn4bYc"])
def test_a_key_in_place_of_the_name_of_a_variable_is_refused(name):
    for field in ("key_variable", "model", "tokenizer"):
        with pytest.raises(ValueError, match="not the key|not a key"):
            EndpointSection(**{"url": "http://a/v1", "model": "m", field: name})
    with pytest.raises(ValueError, match="without user name, password or key"):
        EndpointSection(url=f"http://a/{name}/v1", model="m")


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "hf_inference_key", "TEACHER_KEY", "KEY_2025_09_A1B2"])
def test_names_of_variables_are_no_keys(name):
    assert EndpointSection(url="http://a/v1", model="m", key_variable=name).key_variable == name
    assert not looks_like_key(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("override judge.endpoint.api_key=hunter2", "override judge.endpoint.api_key=[key]"),
        ("override a.extra={Authorization: Bearer xyz}", "override a.extra={Authorization: [key]}"),
        ("{'api_key': 'hunter2', 'b': 1}", "{'api_key': [key], 'b': 1}"),
        ("[{'api_key': 'sk-verylo...", "[{'api_key': [key]"),
        ("Authorization: [key] and more", "Authorization: [key]"),
        ("'--api-key=hunter2'", "'--api-key=[key]'"),
        ("prompt.max_tokens=5", "prompt.max_tokens=5"),
        ("judges.secret.model.name=x", "judges.secret.model.name=x"),
    ],
)
def test_what_people_see_holds_no_key(text, shown):
    assert mask(text) == shown


@pytest.mark.parametrize("text", ["a", "a1", "= ", "key=", "token:", "'", 'a="', "bearer ", "eyJ", "://a", "-----BEGIN ", " ", "{"])
def test_looking_for_keys_takes_time_in_proportion_to_the_length(text):
    def seconds(characters: int) -> float:
        began = time.process_time()
        list(secret_places({"a": (text * characters)[:characters]}))
        return time.process_time() - began

    seconds(1000)
    assert seconds(100_000) < max(40 * min(seconds(10_000) for _ in range(3)), 0.5)
