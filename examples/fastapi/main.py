from os import environ

from fastapi import FastAPI, Request
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.middleware.sessions import SessionMiddleware

from accountlink import AccountLinker, LinkedAccountMixin, LinkPolicy, providers, tune_sqlite
from accountlink.web import LinkFlow, flow_states
from accountlink.web.fastapi import link_router


class Base(DeclarativeBase): ...


class Connection(LinkedAccountMixin, Base):  # the mixin brings columns and keys; id and user_id are yours
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy()
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


async def current_user_id(request: Request) -> int | None:
    return request.session.get("user_id")  # your sign-in has put it there


site = environ["SITE"]  # http://localhost:8000, or https:// and your host
engine = tune_sqlite(create_async_engine("sqlite+aiosqlite:///connections.db"))
flow = LinkFlow(
    AccountLinker(Connection, secrets=[environ["TRANSFER_SECRET"]]),
    engine,
    providers=[providers.google(client_id=environ["GOOGLE_CLIENT_ID"], client_secret=environ["GOOGLE_CLIENT_SECRET"])],
    callback_url=f"{site}/accounts/callback",
    page=f"{site}/settings",
    states=flow_states(Base.metadata),
    secrets=[environ["FLOW_SECRET"]],
)
app = FastAPI()
app.add_middleware(SessionMiddleware, secret_key=environ["SESSION_SECRET"], https_only=flow.cookie.secure)
app.include_router(link_router(flow, current_user=current_user_id), prefix="/accounts")
