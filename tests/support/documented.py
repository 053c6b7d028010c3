"""Answers of OAuth providers, as the providers' public documentation shows them, and what they come to.

Each answer is a fact of the page that is named above it. Tokens are shortened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from accountlink import providers
from accountlink.providers import Evidence, Provider

TENANT: Final = "9122040d-6c67-4c5b-b112-36a304b66dad"
OTHER_TENANT: Final = "8eaef023-2b34-4da1-9baa-8bc8c9d6a490"
CLIENT: Final[Mapping[str, Any]] = {"client_id": "the-client", "client_secret": "the-client-secret"}
APPLE_KEY: Final = ec.generate_private_key(ec.SECP256R1())
APPLE_REGISTRATION: Final = {
    "client_id": "com.example.services",
    "team_id": "DEF123GHIJ",
    "key_id": "ABC123DEFG",
    "private_key": APPLE_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
}


@dataclass(frozen=True, kw_only=True)
class Documented:
    """Hold a provider's documented answers, and the identity that they prove.

    Attributes:
        provider: The preset, configured.
        claims: The claims of the ID token.
        documents: The answers to requests with the access token.
        token: The token response.
        account_id: The stable id that the preset must find.
        email: The address.
        email_verified: The flag, as far as it can be believed.
        display_name: The name.
        scopes: The scopes that the token response lists.
    """

    provider: Provider
    token: Mapping[str, Any]
    account_id: str
    claims: Mapping[str, Any] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    email: str | None = None
    email_verified: bool | None = None
    display_name: str | None = None
    scopes: frozenset[str] = frozenset()

    @property
    def evidence(self) -> Evidence:
        """The answers as a flow hands them to a preset."""
        return Evidence(claims=self.claims, documents=self.documents)


# developers.google.com/identity/openid-connect/openid-connect, "An ID token's payload": the flag is text there, and a
# boolean in the table of claims of developers.google.com/identity/openid-connect/reference.
GOOGLE_CLAIMS: Final = {
    "iss": "https://accounts.google.com",
    "azp": "1234987819200.apps.googleusercontent.com",
    "aud": "1234987819200.apps.googleusercontent.com",
    "sub": "10769150350006150715113082367",
    "at_hash": "HK6E_P6Dh8Y93mRNtsDB1Q",
    "hd": "example.com",
    "email": "jsmith@example.com",
    "email_verified": "true",
    "iat": 1353601026,
    "exp": 1353604926,
    "nonce": "0394852-3190485-2490358",
}
# developers.google.com/identity/protocols/oauth2/web-server, "Exchange authorization code"
GOOGLE_TOKEN: Final = {
    "access_token": "1/fFAGRNJru1FTz70BzhT3Zg",
    "expires_in": 3920,
    "token_type": "Bearer",
    "scope": "https://www.googleapis.com/auth/drive.metadata.readonly https://www.googleapis.com/auth/calendar.readonly",
    "refresh_token": "1//xEoDL4iW3cxlI7yDbSRFYNG01kVKM2C",
}

# learn.microsoft.com/entra/identity-platform/id-tokens, "Sample v2.0 token"
ENTRA_CLAIMS: Final = {
    "ver": "2.0",
    "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
    "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
    "aud": "6cb04018-a3f5-46a7-b995-940c78f5aef3",
    "exp": 1536361411,
    "iat": 1536274711,
    "nbf": 1536274711,
    "name": "Abe Lincoln",
    "preferred_username": "AbeLi@microsoft.com",
    "oid": "00000000-0000-0000-66f3-3332eca7ea81",
    "tid": TENANT,
    "nonce": "123523",
    "aio": "Df2UVXL1ix",
}
# learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow, "Successful response"
ENTRA_TOKEN: Final = {
    "access_token": "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiIsIng1dCI6Ik5HVEZ2ZEstZnl0aEV1Q",
    "token_type": "Bearer",
    "expires_in": 3599,
    "scope": "https://graph.microsoft.com/mail.read",
    "refresh_token": "AwABAAAAvPM1KaPlrEqdFSBzjqfTGAMxZGUTdM0t4B4",
    "id_token": "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0",
}

# docs.github.com/rest/users/users, "Get the authenticated user", and docs.github.com/rest/users/emails
GITHUB_DOCUMENTS: Final[Mapping[str, Any]] = {
    "user": {
        "login": "octocat",
        "id": 1,
        "node_id": "MDQ6VXNlcjE=",
        "type": "User",
        "name": "monalisa octocat",
        "email": "octocat@github.com",
    },
    "emails": [{"email": "octocat@github.com", "verified": True, "primary": True, "visibility": "public"}],
}
# docs.github.com/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps: scopes are separated by commas
GITHUB_TOKEN: Final = {
    "access_token": "gho_16C7e42F292c6912E7710c838347Ae178B4a",
    "scope": "repo,gist",
    "token_type": "bearer",
}

# developers.facebook.com/docs/graph-api/reference/user: "id" is a numeric string; no field flags the address
META_DOCUMENTS: Final[Mapping[str, Any]] = {
    "me": {"id": "10153210312345678", "name": "Jane Smith", "email": "jane@example.com"}
}
# developers.facebook.com/docs/facebook-login/guides/access-tokens/get-long-lived, "Sample Response"
META_TOKEN: Final = {"access_token": "long-lived-user-access-token", "token_type": "bearer", "expires_in": 5183944}

# developer.apple.com/forums/thread/121411 (a decoded token; the flag is text), and the page "Authenticating users"
APPLE_CLAIMS: Final = {
    "iss": "https://appleid.apple.com",
    "aud": "com.example.services",
    "exp": 1565810682,
    "iat": 1565810082,
    "sub": "001393.6d621dadasdd04956bds129fa982ba.1517",
    "c_hash": "dZusyqBNIzmfd8Uv_cVKSw",
    "email": "abcd@privaterelay.appleid.com",
    "email_verified": "true",
    "is_private_email": "true",
    "auth_time": 1565810082,
    "nonce_supported": True,
}
# developer.apple.com/documentation/signinwithapplerestapi/generate-and-validate-tokens: no scopes are listed
APPLE_TOKEN: Final = {
    "access_token": "adg61...67Or9",
    "token_type": "Bearer",
    "expires_in": 3600,
    "refresh_token": "rca7...lABoQ",
    "id_token": "eyJra...96sZg",
}

# docs.gitlab.com/integration/openid_connect_provider, "Shared information"
GITLAB_CLAIMS: Final = {
    "iss": "https://gitlab.com",
    "sub": "42",
    "sub_legacy": "b7a1cb1f5c8a",
    "auth_time": 1607635700,
    "name": "Ada Lovelace",
    "nickname": "ada",
    "preferred_username": "ada",
    "email": "ada@example.com",
    "email_verified": True,
    "groups_direct": ["analysts"],
}
# docs.gitlab.com/api/oauth2, "Example response": no scopes are listed
GITLAB_TOKEN: Final = {
    "access_token": "de6780bc506a0446309bd9362820ba8aed28aa506c71eedbe1c5c4f9dd350e54",
    "token_type": "bearer",
    "expires_in": 7200,
    "refresh_token": "8257e65c97202ed1726cf9571600918f3bffb2544b26e00a61df9897668c33a1",
    "created_at": 1607635748,
}

# docs.slack.dev/authentication/sign-in-with-slack
SLACK_CLAIMS: Final = {
    "iss": "https://slack.com",
    "sub": "U123ABC456",
    "aud": "25259531569.1115258246291",
    "exp": 1626874955,
    "iat": 1626874655,
    "auth_time": 1626874655,
    "nonce": "abcd",
    "at_hash": "abc...123",
    "https://slack.com/team_id": "T0123ABC456",
    "https://slack.com/user_id": "U123ABC456",
    "email": "alice@example.com",
    "email_verified": True,
    "date_email_verified": 1622128723,
    "locale": "en-US",
    "name": "Alice",
    "given_name": "",
    "family_name": "",
}
SLACK_TOKEN: Final = {"ok": True, "access_token": "xoxp-1234", "token_type": "Bearer", "id_token": "eyJhbGcMjY5"}

# OpenID Connect Core 1.0, sections 3.1.3.3 and 5.3.2
OIDC_CLAIMS: Final = {
    "iss": "https://server.example.com",
    "sub": "248289761001",
    "aud": "s6BhdRkqt3",
    "nonce": "n-0S6_WzA2Mj",
    "exp": 1311281970,
    "iat": 1311280970,
}
OIDC_USERINFO: Final = {
    "sub": "248289761001",
    "name": "Jane Doe",
    "given_name": "Jane",
    "family_name": "Doe",
    "preferred_username": "j.doe",
    "email": "janedoe@example.com",
}
OIDC_TOKEN: Final = {
    "access_token": "SlAV32hkKG",
    "token_type": "Bearer",
    "refresh_token": "8xLOxBtZp8",
    "expires_in": 3600,
    "id_token": "eyJhbGciOiJSUzI1NiIsImtpZCI6IjFlOWdkazcifQ",
}

DOCUMENTED: Final[Mapping[str, Documented]] = {
    "google": Documented(
        provider=providers.google(**CLIENT),
        claims=GOOGLE_CLAIMS,
        token=GOOGLE_TOKEN,
        account_id="10769150350006150715113082367",
        email="jsmith@example.com",
        email_verified=None,  # the flag of this example is text
        scopes=frozenset(str(GOOGLE_TOKEN["scope"]).split()),
    ),
    "entra": Documented(
        provider=providers.entra("entra", tenants=[TENANT], **CLIENT),
        claims=ENTRA_CLAIMS,
        token=ENTRA_TOKEN,
        account_id=f"00000000-0000-0000-66f3-3332eca7ea81.{TENANT}",
        display_name="Abe Lincoln",
        scopes=frozenset({"https://graph.microsoft.com/mail.read"}),
    ),
    "github": Documented(
        provider=providers.github(**CLIENT),
        documents=GITHUB_DOCUMENTS,
        token=GITHUB_TOKEN,
        account_id="1",
        email="octocat@github.com",
        email_verified=True,
        display_name="monalisa octocat",
        scopes=frozenset({"repo", "gist"}),
    ),
    "meta": Documented(
        provider=providers.meta(**CLIENT),
        documents=META_DOCUMENTS,
        token=META_TOKEN,
        account_id="10153210312345678",
        email="jane@example.com",
        display_name="Jane Smith",
    ),
    "apple": Documented(
        provider=providers.apple(**APPLE_REGISTRATION),
        claims=APPLE_CLAIMS,
        token=APPLE_TOKEN,
        account_id="001393.6d621dadasdd04956bds129fa982ba.1517",
        email="abcd@privaterelay.appleid.com",
        email_verified=True,
    ),
    "gitlab": Documented(
        provider=providers.gitlab(**CLIENT),
        claims=GITLAB_CLAIMS,
        token=GITLAB_TOKEN,
        account_id="42",
        email="ada@example.com",
        email_verified=True,
        display_name="Ada Lovelace",
    ),
    "slack": Documented(
        provider=providers.slack(**CLIENT),
        claims=SLACK_CLAIMS,
        token=SLACK_TOKEN,
        account_id="U123ABC456.T0123ABC456",
        email="alice@example.com",
        display_name="Alice",
    ),
    "oidc": Documented(
        provider=providers.oidc("acme", issuer="https://server.example.com", **CLIENT),
        claims=OIDC_CLAIMS,
        documents={"userinfo": OIDC_USERINFO},
        token=OIDC_TOKEN,
        account_id="248289761001",
        email="janedoe@example.com",
        display_name="Jane Doe",
    ),
}
"""Each preset's own, by the preset's name."""
