//! Any bytes as each of the messages between processes: they decode or not, and what does is encoded so that it
//! decodes to the same.
#![no_main]

use ipc::control::{Answer, Greeting, Request};
use ipc::handover::{ToFormer, ToSuccessor};
use ipc::message::{ToMaster, ToWorker};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fn check<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = postcard::from_bytes::<M>(bytes) {
        let encoded = postcard::to_stdvec(&message).expect("a message encodes");
        assert_eq!(postcard::from_bytes::<M>(&encoded).expect("and decodes"), message);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<ToWorker>(bytes);
    check::<ToMaster>(bytes);
    check::<ToSuccessor>(bytes);
    check::<ToFormer>(bytes);
    check::<Request>(bytes);
    check::<Answer>(bytes);
    check::<Greeting>(bytes);
});
