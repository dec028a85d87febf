//! The connection manager over real loopback sockets, against an upstream that does as its paths say.

mod going_away;
mod proxying;
mod rig;
mod strangers;
