//! `envoy.filters.network.http_connection_manager`: where its decoding begins.

use prost_types::Any;

use super::context::Context;
use super::error::{At, DecodeError};
use crate::model::Terminal;

/// A connection manager and its routes.
///
/// # Errors
/// Always, as yet: HTTP is not spoken here.
pub(super) fn decode(_config: &Any, at: &At<'_>, _ctx: &mut Context<'_>) -> Result<Terminal, DecodeError> {
    Err(at.refuse("is an HttpConnectionManager, which is not supported yet"))
}
