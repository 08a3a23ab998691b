//! Why a client does not get its connection, in the words of each protocol.

use std::net::SocketAddr;

use crate::dns::DnsError;
use crate::exchange::{Problem, Reason};
use crate::forward::auth::failures::TooMany;
use crate::forward::rules::By;
use crate::forward::uses::Exceeded;
use crate::proto::dynamic::ErrorCode;
use crate::proto::socks::Outcome;

/// See the module's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It must say who it is.
    AuthRequired,
    /// It is not who it says.
    AuthFailed,
    /// Too many passwords wait to be checked.
    AuthBusy,
    /// There have been too many wrong passwords.
    TooManyFailures(TooMany),
    /// It has as much as it may have.
    Limited(Exceeded),
    /// The rules do not allow the target.
    Denied(By),
    /// The rules do not allow the address for the reply.
    ReplyDenied(By),
    /// The name has no address that could be tried.
    Unresolved(DnsError),
    /// No address could be connected to.
    Unreachable,
    /// Every address refused.
    Refused,
    /// It took too long.
    TimedOut,
    /// There is no descriptor or memory for it.
    NoRoom,
}

impl Refusal {
    /// As HTTP has it.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Refusal::AuthRequired | Refusal::AuthFailed => 407,
            Refusal::Denied(_) | Refusal::ReplyDenied(_) => 403,
            Refusal::Limited(_) | Refusal::TooManyFailures(_) => 429,
            Refusal::AuthBusy | Refusal::NoRoom | Refusal::Unresolved(DnsError::Busy) => 503,
            Refusal::Unresolved(error) if !error.is_definite() && !error.is_fault_of_zone() => 504,
            Refusal::Unresolved(_) | Refusal::Unreachable | Refusal::Refused => 502,
            Refusal::TimedOut => 504,
        }
    }

    /// As SOCKS has it.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Refusal::AuthRequired
            | Refusal::AuthFailed
            | Refusal::Denied(_)
            | Refusal::ReplyDenied(_)
            | Refusal::TooManyFailures(_)
            | Refusal::Limited(_) => Outcome::NotAllowed,
            Refusal::AuthBusy | Refusal::NoRoom | Refusal::Unresolved(DnsError::Busy) => Outcome::Failed,
            Refusal::Unresolved(_) | Refusal::Unreachable => Outcome::HostUnreachable,
            Refusal::Refused => Outcome::Refused,
            Refusal::TimedOut => Outcome::TimedOut,
        }
    }

    /// As the dynamic address exchange has it.
    #[must_use]
    pub fn code(self) -> ErrorCode {
        match self {
            Refusal::AuthRequired => ErrorCode::AuthRequired,
            Refusal::AuthFailed => ErrorCode::AuthFailed,
            Refusal::Denied(_) => ErrorCode::Denied,
            Refusal::ReplyDenied(_) => ErrorCode::ReplyDenied,
            Refusal::Limited(_) | Refusal::TooManyFailures(_) => ErrorCode::Limited,
            Refusal::AuthBusy | Refusal::NoRoom | Refusal::Unresolved(DnsError::Busy) => ErrorCode::Busy,
            Refusal::Unresolved(_) => ErrorCode::Unresolved,
            Refusal::Unreachable | Refusal::Refused => ErrorCode::Unreachable,
            Refusal::TimedOut => ErrorCode::Timeout,
        }
    }

    /// In words. Clients get them too, so they tell nothing of the rules, nor of what lies behind the proxy.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Refusal::AuthRequired => "the client must say who it is",
            Refusal::AuthFailed => "wrong user or password",
            Refusal::AuthBusy => "too many passwords wait to be checked",
            Refusal::TooManyFailures(too_many) => too_many.reason(),
            Refusal::Limited(exceeded) => exceeded.reason(),
            Refusal::Denied(_) => "the rules do not allow the target",
            Refusal::ReplyDenied(_) => "the rules do not allow the address for the reply",
            Refusal::Unresolved(DnsError::NoSuchName) => "there is no such name",
            Refusal::Unresolved(DnsError::NoAddress) => "the name has no address",
            Refusal::Unresolved(DnsError::Busy) => "too many names are being looked up",
            Refusal::Unresolved(_) => "the name could not be looked up",
            Refusal::Unreachable => "no address of the target could be connected to",
            Refusal::Refused => "the target refused the connection",
            Refusal::TimedOut => "timed out connecting to the target",
            Refusal::NoRoom => "the worker has no room for a connection",
        }
    }

    /// What decided, where rules did.
    #[must_use]
    pub fn by(self) -> Option<By> {
        match self {
            Refusal::Denied(by) | Refusal::ReplyDenied(by) => Some(by),
            Refusal::AuthRequired
            | Refusal::AuthFailed
            | Refusal::AuthBusy
            | Refusal::TooManyFailures(_)
            | Refusal::Limited(_)
            | Refusal::Unresolved(_)
            | Refusal::Unreachable
            | Refusal::Refused
            | Refusal::TimedOut
            | Refusal::NoRoom => None,
        }
    }

    /// As an answer to an HTTP request.
    #[must_use]
    pub fn problem(self) -> Problem {
        Problem { status: self.status(), reason: Reason::Text(self.text()) }
    }
}

/// A refusal with what logs tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// Who was refused, if that was proved.
    pub user: Option<Box<str>>,
    /// The rule that decided, or last allowed it, as `SET:RULE`.
    pub rule: Option<Box<str>>,
    /// The address that was tried last or refused first.
    pub address: Option<SocketAddr>,
}
