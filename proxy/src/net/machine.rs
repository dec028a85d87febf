//! The address by which this machine tells of itself.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The first IPv4 address of an interface that is up and not the loopback, as Envoy chooses it; `127.0.0.1`
/// where there is none. Asked once a process.
pub fn address() -> IpAddr {
    static ADDRESS: OnceLock<Ipv4Addr> = OnceLock::new();
    IpAddr::V4(*ADDRESS.get_or_init(|| first().unwrap_or(Ipv4Addr::LOCALHOST)))
}

fn first() -> Option<Ipv4Addr> {
    let usable = |flags: InterfaceFlags| {
        flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
    };
    let all = getifaddrs().ok()?;
    all.filter(|interface| usable(interface.flags))
        .find_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_the_same_and_is_no_wildcard() {
        assert_eq!(address(), address());
        assert!(address().is_ipv4() && !address().is_unspecified());
    }
}
