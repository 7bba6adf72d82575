//! Messages that are written elsewhere, and here only put into others.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, skip_field};
use prost::{DecodeError, Message};
use tally_mvcc::Record;

/// An encoded message that is put into other messages as it is.
macro_rules! encoded {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
        #[allow(dead_code)]
        pub(crate) struct $name(Bytes);

        impl Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                buf.put_slice(&self.0);
            }

            /// Requests hold none of these: what a client puts there is passed over.
            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                skip_field(wire_type, tag, buf, ctx)
            }

            fn encoded_len(&self) -> usize {
                self.0.len()
            }

            fn clear(&mut self) {
                self.0.clear();
            }
        }
    };
}

encoded! {
    /// `mvccpb.KeyValue`: the very bytes of a stored record.
    KeyValue
}

encoded! {
    /// `mvccpb.Event`, written once for all who watch.
    Event
}

impl From<&Record> for KeyValue {
    fn from(record: &Record) -> Self {
        KeyValue(record.bytes().clone())
    }
}

impl From<Bytes> for Event {
    /// Takes bytes that are an encoded `mvccpb.Event`.
    fn from(encoded: Bytes) -> Self {
        Event(encoded)
    }
}
