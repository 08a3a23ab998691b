//! Any bytes as each of the messages between processes: they decode or not, and what does is encoded so that it
//! decodes to the same.

use ipc::control::{Answer, Greeting, Request};
use ipc::handover::{ToFormer, ToSuccessor};
use ipc::message::{ToMaster, ToWorker};
use serde::{Serialize, de::DeserializeOwned};

fn one<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = postcard::from_bytes::<M>(bytes) {
        let encoded = postcard::to_stdvec(&message).expect("a message encodes");
        assert_eq!(postcard::from_bytes::<M>(&encoded).expect("and decodes"), message);
    }
}

/// Does so for every kind of message.
///
/// # Panics
/// When that does not hold.
pub fn check(bytes: &[u8]) {
    one::<ToWorker>(bytes);
    one::<ToMaster>(bytes);
    one::<ToSuccessor>(bytes);
    one::<ToFormer>(bytes);
    one::<Request>(bytes);
    one::<Answer>(bytes);
    one::<Greeting>(bytes);
}
