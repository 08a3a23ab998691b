//! What a user of message heads needs, under one roof.

pub use super::error::{HeadError, HostFault, LengthFault};
pub use super::field::{Field, FieldName};
pub use super::method::Method;
pub use super::request::{BodyFraming, RequestHead};
pub use super::response::{ResponseFraming, ResponseHead};
pub use super::span::Span;
pub use super::target::{Scheme, Target, TargetForm};

/// What is asked of one head. The bounds are the configuration's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the whole head: start line, fields, the empty line, and a skipped leading empty line.
    pub bytes: usize,
    /// Field lines.
    pub fields: usize,
    /// Of a request: its target says where it goes and what its Host becomes, whatever Host says, as for a proxy whose
    /// clients name the target (RFC 9112 section 3.2.2). Otherwise a Host that differs from the target is a fault.
    pub by_target: bool,
}

/// The protocol versions spoken (RFC 9110 section 2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}
