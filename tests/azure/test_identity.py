"""As whom Azure is asked: which sign-in counts, and what the operator is told to do."""

import base64
import json
import time

import pytest

pytest.importorskip("azure.mgmt.network", reason="needs the packages of the extra `azure`")
pytest.importorskip("jsonschema", reason="needs the packages of the extra `test`")

from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from deploy.azure import identity
from deploy.azure.cloud import Place
from tests.azure.fake_azure.azure import SUBSCRIPTION
from tests.azure.fake_azure.operator import Operator
from tests.azure.fake_azure.server import TOKEN, TOKEN_OF_MACHINE, TOKEN_WITH_CLAIMS
from tests.azure.operators import made, mutations

MFA = json.dumps({"access_token": {"acrs": {"essential": True, "values": ["p1"]}}})
ENCODED_MFA = base64.b64encode(MFA.encode()).decode()
TENANT_OF_OTHERS = "99999999-7777-8888-9999-000000000000"

AZ = """#!/bin/sh
echo "$@" >> {folder}/az-calls
{script}
"""
ANSWER = """case "$*" in *storage.azure.com*) token=a-token-for-storage ;; *) token={token} ;; esac
echo '{{"accessToken": "'$token'", "expires_on": 4102444800, "tokenType": "Bearer"}}'"""
EXPIRED = """cat >&2 <<'END'
ERROR: AADSTS70043: The refresh token has expired or is invalid due to sign-in frequency checks
by conditional access. {padding}
Trace ID: 5cb99b7e-aa19-40bb-8d4a-1549475d3a00 Timestamp: 2025-03-11 21:26:54Z
Interactive authentication is needed. Please run:
az login --scope https://management.core.windows.net//.default
END
exit 1"""


def token_of(name: str) -> str:
    """A token that says whose it is; the fake does not look into it, but takes it as its own."""
    body = base64.urlsafe_b64encode(json.dumps({"upn": name}).encode()).decode().rstrip("=")
    return f"e30.{body}.sig"


def with_az(operator: Operator, script: str) -> None:
    """Nothing in the environment, and an `az` that does this."""
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"):
        operator.environment.pop(name, None)
    az = operator.folder / "bin" / "az"
    az.parent.mkdir()
    az.write_text(AZ.format(folder=operator.folder, script=script))
    az.chmod(0o755)
    operator.environment["PATH"] = f"{az.parent}:/usr/bin:/bin"


def with_managed_identity(operator: Operator) -> None:
    """The machine has an identity of its own, as one in Azure has."""
    operator.environment["IDENTITY_ENDPOINT"] = f"{operator.azure.url}/msi/token"
    operator.environment["IDENTITY_HEADER"] = "x"


def tokens_sent(operator: Operator) -> set[str]:
    resource_manager = f"/subscriptions/{SUBSCRIPTION}"
    return {
        record.request.headers["Authorization"].removeprefix("Bearer ")
        for record in operator.azure.log.records
        if record.request.path.startswith(resource_manager)
    }


def test_whoever_signed_in_with_az_is_asked_for_one_token_a_service(operator: Operator) -> None:
    with_az(operator, ANSWER.format(token=TOKEN))
    made(operator)
    calls = (operator.folder / "az-calls").read_text().splitlines()
    assert len(calls) == len(set(calls)) == 2
    assert f"--resource {operator.azure.url} --subscription {SUBSCRIPTION}" in calls[0]


def test_az_login_counts_also_where_services_are_told_to_use_something_else(
    operator: Operator,
) -> None:
    with_az(operator, ANSWER.format(token=TOKEN))
    operator.environment["AZURE_TOKEN_CREDENTIALS"] = "ManagedIdentityCredential"  # noqa: S105
    outcome = operator.run("plan")
    assert outcome.code == 3, outcome.output
    assert f"subscription {SUBSCRIPTION}, as `az login`:" in outcome.output


def test_az_login_counts_before_the_identity_of_the_machine(operator: Operator) -> None:
    with_managed_identity(operator)
    with_az(operator, ANSWER.format(token=TOKEN))
    outcome = operator.run("plan")
    assert outcome.code == 3, outcome.output
    assert tokens_sent(operator) == {TOKEN}


@pytest.mark.parametrize("told", ["", "dev", "AzureCliCredential"])
def test_the_identity_of_the_machine_counts_where_nobody_signed_in_and_is_named(
    operator: Operator, told: str
) -> None:
    """Whatever services are told to use."""
    operator.environment["AZURE_TOKEN_CREDENTIALS"] = told
    with_managed_identity(operator)
    with_az(operator, "echo \"Please run 'az login' to setup account.\" >&2; exit 1")
    operator.azure.allowed = ()
    outcome = operator.run("plan")
    assert outcome.code == 2
    assert tokens_sent(operator) == {TOKEN_OF_MACHINE}
    assert "AuthorizationFailed" in outcome.output
    assert "(Azure was asked as managed identity of this machine.)" in outcome.output


def test_where_nobody_is_signed_in_the_one_thing_to_do_is_told(operator: Operator) -> None:
    with_az(operator, "echo \"Please run 'az login' to setup account.\" >&2; exit 1")
    outcome = operator.run("plan")
    assert outcome.code == 2
    assert outcome.output == f"deploy: {identity.NOBODY}\n"


def test_an_expired_session_of_az_is_told_to_its_last_word(operator: Operator) -> None:
    with_az(operator, EXPIRED.format(padding="The token was issued on 2025-02-20. " * 40))
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert outcome.output.startswith("deploy: `az login` was refused: run `az login` as somebody")
    assert "az login --scope https://management.core.windows.net//.default" in outcome.output
    assert len(outcome.output.splitlines()) == 1


def test_an_az_that_knows_another_subscription_only_is_told(operator: Operator) -> None:
    said = f"ERROR: Subscription '{SUBSCRIPTION}' not found. Check the spelling and casing."
    with_az(operator, f'echo "{said}" >&2; exit 1')
    outcome = operator.run("plan")
    assert outcome.code == 2
    assert "run `az login` as somebody who has this subscription" in outcome.output
    assert said in outcome.output


def test_an_az_has_a_minute_and_one_that_does_not_answer_by_then_is_told(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's own ten seconds are too few for many (Azure/azure-cli issue 29329)."""
    assert identity.AZ_SECONDS == 60
    with_az(operator, "exec sleep 60")
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", operator.environment["PATH"])
    monkeypatch.setattr(identity, "AZ_SECONDS", 1)
    begun = time.monotonic()
    with pytest.raises(ClientAuthenticationError, match="`az login`: no answer within 1 s"):
        Place(SUBSCRIPTION).identity().get_token("https://management.azure.com/.default")
    assert time.monotonic() - begun < 20


def test_whose_token_it_is_stands_beside_the_subscription(operator: Operator) -> None:
    found = identity.Identity(iter(()))
    found.tokens[("a",)] = AccessToken(token_of("me@example.org"), 4102444800)
    found.way = identity.Way("`az login`", found, "")
    assert found.whose == "me@example.org (`az login`)"
    assert "as service principal the-operator (AZURE_CLIENT_ID):" in operator.run("plan").output


def test_another_tenants_token_is_told_with_the_tenant_to_sign_in_to(operator: Operator) -> None:
    with_az(operator, ANSWER.format(token=TOKEN))
    operator.azure.tenant = TENANT_OF_OTHERS
    outcome = operator.run("plan")
    assert outcome.code == 2
    assert f"sign in with `az login --tenant {TENANT_OF_OTHERS}`" in outcome.output


def test_a_demand_for_mfa_reaches_the_operator_with_what_to_run(operator: Operator) -> None:
    with_az(operator, ANSWER.format(token=TOKEN))
    operator.azure.claims = MFA
    assert operator.run("plan").code == 3  # to look, no MFA is asked for
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert f"az login --claims-challenge {ENCODED_MFA}" in outcome.output
    assert operator.azure.groups == {}


def test_a_demand_for_claims_is_met_by_an_identity_that_can(operator: Operator) -> None:
    operator.azure.claims = MFA
    outcome = operator.run("up", "--yes")
    assert outcome.code == 0, outcome.output
    assert tokens_sent(operator) == {TOKEN, TOKEN_WITH_CLAIMS}
    operator.azure.claims = ""
    assert operator.run("plan").code == 0
    assert len(operator.azure.resources) > 16
    operator.azure.claims = MFA
    assert operator.run("down", "--yes").code == 0
    assert mutations(operator.azure)
    assert operator.azure.groups == {}
