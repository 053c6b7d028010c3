"""An MCP server whose tool calls an API with each user's own account there: see README.md."""

from os import environ

from httpx2 import URL, AsyncClient
from mcp import UrlElicitationRequiredError, types
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from starlette.middleware.sessions import SessionMiddleware

from accountlink import AccountNotFound, LinkedAccountAuth, NeedsConsent, RefreshUnavailable
from accountlink.web import LinkFlow
from accountlink.web.starlette import link_routes
from examples.mcp.models import STATES, acme, engine, linker, until_the_end
from examples.mcp.users import PROTECTION, SITE, OurAccessTokens, user_of_agent, user_of_browser

API = URL(environ["ACME_API"])
flow = LinkFlow(
    linker,
    engine,
    providers=[acme],
    callback_url=f"{SITE}/accounts/callback",
    page=f"{SITE}/settings",
    states=STATES,
    secrets=[environ["FLOW_SECRET"]],
)
server = MCPServer("acme", token_verifier=OurAccessTokens(), auth=PROTECTION, lifespan=until_the_end)


@server.tool()
async def read_profile(context: Context) -> str | types.InputRequiredResult:
    """Read the user's profile at Acme."""
    auth = LinkedAccountAuth(linker, engine, user_id=user_of_agent(), provider="acme", origins=[str(API.join("/"))])
    try:
        async with AsyncClient(auth=auth) as client:
            return (await client.get(API)).raise_for_status().text
    except AccountNotFound:
        return await ask_to_connect(context)
    except NeedsConsent as ended:
        return await ask_to_connect(context, reconnect=ended.link_id)
    except RefreshUnavailable as away:
        raise ToolError(f"Acme does not answer now. Call this tool again after {away.retry_at}.") from None


async def ask_to_connect(context: Context, reconnect: int | None = None) -> str | types.InputRequiredResult:
    """Send the user to a ticket: by URL elicitation, as the client knows it, or in the tool's answer."""
    if context.input_responses:  # the client asks again before the user is done, or the user does not want to
        return "The account at Acme is not connected. Call this tool again when the user has connected it."
    url = (await flow.ticket(user_id=user_of_agent(), provider="acme", expect=reconnect)).url
    ask = types.ElicitRequestURLParams(message="Connect your account at Acme.", url=url, elicitation_id=url)
    if not ((can := context.client_capabilities) and can.elicitation and can.elicitation.url):
        return f"Ask the user to connect their account at Acme: {url} . Then call this tool again."
    if context.protocol_version == "2025-11-25":
        raise UrlElicitationRequiredError([ask])
    return types.InputRequiredResult(input_requests={"connect": types.ElicitRequest(params=ask)})


app = server.streamable_http_app(host=URL(SITE).host)
app.routes.extend(link_routes(flow, current_user=user_of_browser, prefix="/accounts"))
app.add_middleware(SessionMiddleware, secret_key=environ["SESSION_SECRET"], https_only=flow.cookie.secure)
