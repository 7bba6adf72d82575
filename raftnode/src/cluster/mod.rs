//! Being one of several: who leads, who belongs to the cluster, and what other members may ask of this one.

mod changes;
mod host;
mod leadership;
mod transfer;

pub(crate) use changes::Changes;
pub(crate) use host::{Inside, effective_members};
pub(crate) use leadership::{Leader, Leadership};
pub(crate) use transfer::{hand_over, successor};
