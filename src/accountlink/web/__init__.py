"""Lead users to a provider and back: the flow, without a framework.

``accountlink.web.fastapi`` and ``accountlink.web.starlette`` make routes of it.
"""

from accountlink.extras import explained

try:
    from accountlink.web.flow import LinkFlow
    from accountlink.web.outcomes import (
        Finished,
        Impersonated,
        ProvenIdentity,
        Started,
        Ticket,
        TicketOffer,
        Tokens,
        Unbound,
    )
    from accountlink.web.sign_in import SignInFlow
    from accountlink.web.states import MemoryFlowStates, flow_states
except ModuleNotFoundError as missing:
    raise explained("accountlink.web", missing) from None

__all__ = [
    "Finished",
    "Impersonated",
    "LinkFlow",
    "MemoryFlowStates",
    "ProvenIdentity",
    "SignInFlow",
    "Started",
    "Ticket",
    "TicketOffer",
    "Tokens",
    "Unbound",
    "flow_states",
]
