//! The authentication service without users, as etcd's is before it is enabled: clients that were given credentials ask for a
//! token first, and go on without one when they hear that none is needed.

use crate::api::state::State;
use crate::error::ApiError;
use crate::wire::{AuthStatus, EmptyMessage};

/// etcd counts the changes of users and roles from here.
const NEVER_CHANGED: u64 = 1;

pub(crate) fn status(state: &State, EmptyMessage: EmptyMessage) -> AuthStatus {
    AuthStatus { revision: state.node.revision(), is_enabled: false, auth_revision: NEVER_CHANGED }
}

/// What a name and a password are worth, whoever it is.
pub(crate) fn authenticate(EmptyMessage: EmptyMessage) -> ApiError {
    ApiError::AuthNotEnabled
}
