//! The messages on the channel between the master and one worker.
//!
//! Each is one record of the `SOCK_SEQPACKET` socket, encoded with postcard. Descriptors travel beside the
//! message, in the order the variant's comment gives.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::forward::Tunnel;
use crate::handover::Bound;
use crate::origin::Origin;
use crate::snapshot::{Endpoint, ListenerId, Target};

/// The protocol's version; a worker refuses a [`ToWorker::Hello`] with another one.
pub const VERSION: u16 = 8;

/// Descriptors in one message at most: the kernel's `SCM_MAX_FD`.
pub const MAX_FDS: usize = 253;

/// Bytes of unanswered requests, and of what is known of tunnels, carried by one message at most, all its connections
/// together.
pub const MAX_CARRIED_BYTES: usize = 64 * 1024;

/// Bytes of a request that is lost which travel with [`Task::Fail`] at most.
pub const MAX_LOST_BYTES: usize = 8 * 1024;

/// Addresses that one name of servers stands for at most.
pub const MAX_ENDPOINTS: usize = 256;

/// Bytes of [`Standing::trouble`] at most.
pub const MAX_TROUBLE_BYTES: usize = 200;

/// From the master to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message. Descriptors: the sealed snapshot, the shared region, the ledger of all workers, then the
    /// access log's file when the snapshot wants one (standard output included).
    Hello {
        /// [`VERSION`].
        version: u16,
        /// The worker's number, from 0.
        index: u16,
        /// The process's row in the ledger; `None` = there is none for it.
        row: Option<u16>,
        /// How the shared region is laid out.
        layout: Layout,
    },
    /// Connections to serve, in this order, each with as many descriptors as [`Task::descriptors`] says.
    Pass(Vec<Passed>),
    /// The master has died with these connections in hand, each with its descriptor: serve them as the master would have
    /// had them served. Sent on its behalf, after all it has sent itself.
    Inherit {
        /// Of each, where it was accepted.
        listeners: Vec<ListenerId>,
        /// Whether some of them may have been passed to this worker before.
        perhaps_sent: bool,
    },
    /// Write the access log to this descriptor from now on.
    OpenLog,
    /// Work by another configuration from now on. Descriptors: the sealed snapshot, then the access log's file when
    /// the snapshot wants one.
    Reload {
        /// The snapshot's [`crate::snapshot::Snapshot::generation`].
        generation: u64,
    },
    /// Close the connections that have been idle longest: somebody waits who cannot be accepted.
    GiveWay {
        /// So many of them.
        connections: u32,
    },
    /// Of these connections, which are relayed, the master could not keep all that a successor needs. They end with
    /// this worker; whoever gives one back sends its descriptors.
    Unkept {
        /// Which.
        ids: Vec<u32>,
    },
    /// Hold these open, without using them, for the case that the master dies: listening sockets, the control socket,
    /// and whatever is to last as long as this worker. They replace those kept before.
    Keep {
        /// The listening sockets.
        listeners: Vec<Kept>,
    },
    /// Write what the log still holds and exit with 0, whatever is in progress.
    Stop,
    /// Turn the loop once, so that the heartbeat moves, and say in the shared region how long this was under way.
    Ping {
        /// Milliseconds of the monotonic clock when it was sent.
        sent_ms: u64,
    },
    /// Give up to so many idle connections back: this worker is behind, and others are not.
    Ease {
        /// So many of them.
        connections: u32,
    },
    /// Take nothing new, finish the requests in progress, exit with 0.
    Drain {
        /// After so many milliseconds, cut what is left.
        timeout_ms: u32,
        /// Give idle connections and relays back with [`ToMaster::GaveBack`], to be served by another worker.
        /// Otherwise idle ones are closed, and relays go on until the time is over.
        give_back: bool,
    },
}

/// A listening socket that a worker keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Which listener's it is.
    pub listener: ListenerId,
    /// Where it is bound.
    pub bound: Bound,
}

/// What is known of a name of servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The name.
    pub target: Target,
    /// What it stands for, by its last good answer; at most [`MAX_ENDPOINTS`].
    pub endpoints: Vec<Endpoint>,
    /// Why there was no answer this time, for people; at most [`MAX_TROUBLE_BYTES`].
    pub trouble: Option<String>,
    /// After how many milliseconds it is looked up again; `None` = when the configuration is read again.
    pub again_ms: Option<u64>,
}

/// From a worker to the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToMaster {
    /// The worker has its configuration and takes connections.
    Ready,
    /// The worker works by the configuration of this generation. All it said before was under an earlier one.
    Reloaded {
        /// As in [`ToWorker::Reload`].
        generation: u64,
    },
    /// These connections are over: deregistered, shut down and closed here. The master drops its copies.
    Finished(Vec<u32>),
    /// These connections were let go of without being ended: another worker is to serve them. For relays the
    /// records and the pipes' owners say what is under way, as after a death. Descriptors: those of the connections of
    /// which the master has no copy, in this order, each as [`GivenBack::own`] says.
    GaveBack(Vec<GivenBack>),
    /// These connections are relayed, each with as many descriptors as [`Relaying::descriptors`] says, in this order.
    /// With copies of them the master can have the relay gone on with elsewhere.
    Relaying(Vec<Relaying>),
    /// A name of servers has been looked up. Workers that are started from now on begin with what it stands for.
    Resolved(Standing),
    /// Pipe `number` is in use from now on. Descriptor: its reading end, which replaces the former one.
    Pipe {
        /// Below [`crate::state::MAX_PIPES`].
        number: u16,
    },
}

/// One connection that a worker gives back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenBack {
    /// Which.
    pub id: u32,
    /// What had been read from it and not answered; all messages' together at most [`MAX_CARRIED_BYTES`].
    pub carried: Vec<u8>,
    /// Its descriptors come with the message, as many as [`Task::descriptors`] says; `None` = the master has copies.
    /// A relay is to be gone on with; everything else is served, whatever else this says.
    pub own: Option<Task>,
}

/// One relay in use, as the worker reports it. Descriptors: the server's connection, then, if there is one, the
/// connection that takes the answer, which need not be connected yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relaying {
    /// The client's connection.
    pub id: u32,
    /// The server it is relayed to, by its [`crate::snapshot::Server::number`]: that holds whichever configuration
    /// either side works by at the moment.
    pub server: Option<u64>,
    /// What comes from the server does not go to the client, but to a connection of its own.
    pub reply: bool,
    /// Of a forward listener: what whoever goes on with it must know.
    pub tunnel: Option<Box<Tunnel>>,
}

impl Relaying {
    /// Descriptors that travel with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        1 + usize::from(self.reply)
    }
}

/// How the shared region of one worker is laid out; both sides derive every offset from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Connection records: the most connections the worker can have.
    pub records: u32,
    /// Buffers for requests not yet answered.
    pub slots: u32,
    /// Size of each in bytes, a multiple of 4096.
    pub slot_bytes: u32,
}

/// One connection on its way to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// The master's number for it within this worker: the index of its record in the shared region.
    pub id: u32,
    /// Where it was accepted.
    pub listener: ListenerId,
    /// The address of the connection's other end; `None` on a Unix listener.
    pub peer: Option<SocketAddr>,
    /// What a proxy in front says of it.
    pub origin: Origin,
    /// What the worker is to do with it.
    pub task: Task,
    /// Whether the master keeps a copy of its descriptors. Otherwise it ends with this worker, should that die.
    pub kept: bool,
}

/// What could be found of a request that is not run again, for the access log alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lost {
    /// Its first bytes, at most [`MAX_LOST_BYTES`].
    pub beginning: Vec<u8>,
    /// The server that may have seen it, by its [`crate::snapshot::Server::number`].
    pub server: Option<u64>,
}

/// What a worker does with a connection it receives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Serve it: it is new, or was between two requests.
    Serve,
    /// Serve it, beginning with these bytes, which its former worker had read and not answered.
    Resume(Vec<u8>),
    /// Its former worker died over a request that must not be run twice: answer 502 and close.
    Fail(Lost),
    /// Its client has too many connections: answer 503 and close (TCP: close).
    Refuse,
    /// Go on with the relay that its former worker left. Descriptors: the client's connection, the server's, the one
    /// that takes the answer if there is one, and the reading end of a pipe for each direction in which bytes were under
    /// way, to the server first.
    Relay {
        /// The server's number, if it is known.
        server: Option<u64>,
        /// As [`Relaying::reply`].
        reply: bool,
        /// A pipe with bytes for the server comes with it.
        to_server: bool,
        /// A pipe with bytes for the client, or for the connection that takes the answer, comes with it.
        to_client: bool,
        /// Of a forward listener: what is known of it.
        tunnel: Option<Box<Tunnel>>,
    },
}

impl Task {
    /// What counts against [`MAX_CARRIED_BYTES`] in a message.
    #[must_use]
    pub fn carried_bytes(&self) -> usize {
        match self {
            Task::Resume(bytes) | Task::Fail(Lost { beginning: bytes, .. }) => bytes.len(),
            Task::Relay { tunnel, .. } => tunnel.as_ref().map_or(0, |tunnel| tunnel.bytes()),
            Task::Serve | Task::Refuse => 0,
        }
    }

    /// Descriptors that travel with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Task::Serve | Task::Resume(_) | Task::Fail(_) | Task::Refuse => 1,
            Task::Relay { reply, to_server, to_client, .. } => {
                2 + [reply, to_server, to_client].into_iter().map(|&there| usize::from(there)).sum::<usize>()
            }
        }
    }
}
