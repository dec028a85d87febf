//! `core.v3.Address` and `core.v3.CidrRange`.

use std::net::{IpAddr, SocketAddr};

use attache_proto::envoy::config::core::v3::{
    self as core, address::Address as Kind, socket_address::PortSpecifier, socket_address::Protocol,
};

use super::common::{enumeration, need, port, unsupported};
use super::error::{At, DecodeError};
use crate::model::cluster::Target;
use crate::model::listener::Address;
use crate::model::matcher::Cidr;

/// Room for a path in `sockaddr_un`, its closing zero left out.
const MAX_PIPE_PATH: usize = 107;

/// Whether host names may stand where an address does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostNames {
    /// In what a cluster itself says of its endpoints.
    Resolved,
    /// Over EDS and where a listener binds.
    Refused,
}

/// Where a listener binds.
///
/// # Errors
/// Names the field: no IP address, a port out of range, a path that no socket can have.
pub fn listen(address: Option<&core::Address>, at: &At<'_>) -> Result<Address, DecodeError> {
    match kind(address, at)? {
        Kind::Pipe(pipe) => self::pipe(pipe, &at.field("pipe")),
        Kind::SocketAddress(socket) => {
            let at = at.field("socket_address");
            let port = socket_port(socket, &at)?;
            let ip = socket
                .address
                .parse()
                .map_err(|_| not_an_ip(&socket.address, &at))?;
            Ok(Address::Socket(SocketAddr::new(ip, port)))
        }
    }
}

/// What an endpoint's address is.
///
/// # Errors
/// As [`listen`]; a host name where none may be.
pub fn target(address: Option<&core::Address>, names: HostNames, at: &At<'_>) -> Result<Target, DecodeError> {
    match kind(address, at)? {
        Kind::Pipe(pipe) => Ok(Target::Address(self::pipe(pipe, &at.field("pipe"))?)),
        Kind::SocketAddress(socket) => {
            let at = at.field("socket_address");
            let port = socket_port(socket, &at)?;
            let host = need(&socket.address, &at.field("address"))?;
            match host.parse::<IpAddr>() {
                Ok(ip) => Ok(Target::Address(Address::Socket(SocketAddr::new(ip, port)))),
                Err(_) if names == HostNames::Resolved => Ok(Target::Host {
                    host: host.into(),
                    port,
                }),
                Err(_) => Err(not_an_ip(host, &at)),
            }
        }
    }
}

/// A range of addresses. Without a length it holds every address, as for Envoy.
///
/// # Errors
/// No IP address, or more bits than it has.
pub fn cidr(range: &core::CidrRange, at: &At<'_>) -> Result<Cidr, DecodeError> {
    let prefix = &range.address_prefix;
    let address: IpAddr = prefix.parse().map_err(|_| {
        at.field("address_prefix")
            .refuse(format!("{prefix:?} is no IP address"))
    })?;
    let length = range.prefix_len.unwrap_or(0);
    u8::try_from(length)
        .ok()
        .and_then(|length| Cidr::new(network(address, length), length))
        .ok_or_else(|| {
            at.field("prefix_len")
                .refuse(format!("{length} is more than {prefix} has"))
        })
}

/// Ranges of addresses.
///
/// # Errors
/// As [`cidr`].
pub fn cidrs(ranges: &[core::CidrRange], at: &At<'_>) -> Result<Vec<Cidr>, DecodeError> {
    let one = |(index, range)| cidr(range, &at.index(index));
    ranges.iter().enumerate().map(one).collect()
}

/// The address with only its first `length` bits, so that equal ranges are equal values.
fn network(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(ip) => {
            let host = u32::MAX.checked_shr(length).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & !host).into())
        }
        IpAddr::V6(ip) => {
            let host = u128::MAX.checked_shr(length).unwrap_or(0);
            IpAddr::V6((u128::from(ip) & !host).into())
        }
    }
}

fn kind<'a>(address: Option<&'a core::Address>, at: &At<'_>) -> Result<&'a Kind, DecodeError> {
    address
        .and_then(|address| address.address.as_ref())
        .ok_or_else(|| at.refuse("is missing, or is neither a socket_address nor a pipe"))
}

fn socket_port(socket: &core::SocketAddress, at: &At<'_>) -> Result<u16, DecodeError> {
    if enumeration::<Protocol>(socket.protocol, &at.field("protocol"))? == Protocol::Udp {
        return Err(at.field("protocol").refuse("UDP is not supported"));
    }
    unsupported(
        at,
        &[
            (!socket.resolver_name.is_empty(), "resolver_name"),
            (socket.ipv4_compat, "ipv4_compat"),
            (
                !socket.network_namespace_filepath.is_empty(),
                "network_namespace_filepath",
            ),
        ],
    )?;
    match &socket.port_specifier {
        Some(PortSpecifier::PortValue(value)) => port(*value, &at.field("port_value")),
        Some(PortSpecifier::NamedPort(_)) => Err(at.field("named_port").refuse("is not supported")),
        None => Err(at.field("port_value").refuse("is missing")),
    }
}

fn pipe(pipe: &core::Pipe, at: &At<'_>) -> Result<Address, DecodeError> {
    let path = need(&pipe.path, &at.field("path"))?;
    let refuse = |why: String| Err(at.field("path").refuse(why));
    if path.len() > MAX_PIPE_PATH || path.contains('\0') {
        return refuse(format!(
            "is not a socket's path: at most {MAX_PIPE_PATH} bytes, none of them 0"
        ));
    }
    if path.starts_with('@') {
        return refuse("is in the abstract namespace, which is not supported".to_owned());
    }
    if pipe.mode > 0o777 {
        return Err(at
            .field("mode")
            .refuse(format!("{:#o} is more than 0o777", pipe.mode)));
    }
    Ok(Address::Pipe {
        path: path.into(),
        // Absent and 0 are the same on the wire.
        mode: (pipe.mode > 0).then_some(pipe.mode),
    })
}

fn not_an_ip(address: &str, at: &At<'_>) -> DecodeError {
    at.field("address").refuse(format!(
        "{address:?} is no IP address; host names may stand in a cluster of STRICT_DNS or LOGICAL_DNS only"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(address: &str, port: u32) -> core::Address {
        core::Address {
            address: Some(Kind::SocketAddress(core::SocketAddress {
                address: address.to_owned(),
                port_specifier: Some(PortSpecifier::PortValue(port)),
                ..core::SocketAddress::default()
            })),
        }
    }

    fn unix(path: &str, mode: u32) -> core::Address {
        core::Address {
            address: Some(Kind::Pipe(core::Pipe {
                path: path.to_owned(),
                mode,
            })),
        }
    }

    const AT: At<'static> = At::resource("Listener", "l");

    #[test]
    fn listeners_bind_to_ip_addresses_and_pipes() {
        let address = |address: &core::Address| listen(Some(address), &AT).map(|a| a.to_string());
        assert_eq!(address(&socket("10.0.0.1", 20000)).unwrap(), "10.0.0.1:20000");
        assert_eq!(address(&socket("::1", 0)).unwrap(), "[::1]:0");
        let pipe = listen(Some(&unix("/tmp/s", 0o660)), &AT).unwrap();
        let path = "/tmp/s".into();
        assert_eq!(
            pipe,
            Address::Pipe {
                path,
                mode: Some(0o660)
            }
        );
        for (bad, path) in [
            (socket("localhost", 1), "socket_address.address"),
            (socket("10.0.0.1", 65536), "socket_address.port_value"),
            (unix("", 0), "pipe.path"),
            (unix("@abstract", 0), "pipe.path"),
            (unix(&"x".repeat(108), 0), "pipe.path"),
            (unix("/tmp/s", 0o1777), "pipe.mode"),
            (core::Address::default(), ""),
        ] {
            assert_eq!(address(&bad).unwrap_err().path, path);
        }
        let mut udp = core::SocketAddress {
            protocol: 1,
            ..core::SocketAddress::default()
        };
        let refused = |socket: &core::SocketAddress| {
            let address = core::Address {
                address: Some(Kind::SocketAddress(socket.clone())),
            };
            listen(Some(&address), &AT).unwrap_err().to_string()
        };
        assert_eq!(
            refused(&udp),
            "Listener \"l\": socket_address.protocol UDP is not supported"
        );
        udp.protocol = 9;
        assert!(refused(&udp).ends_with("has the unknown value 9"));
        udp.protocol = 0;
        udp.port_specifier = Some(PortSpecifier::NamedPort("http".to_owned()));
        assert!(refused(&udp).ends_with("named_port is not supported"));
    }

    #[test]
    fn host_names_only_where_they_are_resolved() {
        let host = socket("db.local", 5432);
        let resolved = target(Some(&host), HostNames::Resolved, &AT).unwrap();
        assert_eq!(resolved.to_string(), "db.local:5432");
        assert!(matches!(resolved, Target::Host { .. }));
        let refused = target(Some(&host), HostNames::Refused, &AT).unwrap_err();
        assert!(refused.to_string().contains("STRICT_DNS"), "{refused}");
        let ip = target(Some(&socket("10.0.0.1", 1)), HostNames::Resolved, &AT).unwrap();
        assert!(matches!(ip, Target::Address(_)));
    }

    #[test]
    fn ranges_are_networks() {
        let range = |prefix: &str, length| {
            let range = core::CidrRange {
                address_prefix: prefix.to_owned(),
                prefix_len: length,
            };
            cidr(&range, &AT).map(|c| c.to_string())
        };
        assert_eq!(range("10.1.2.3", Some(8)).unwrap(), "10.0.0.0/8");
        assert_eq!(range("10.1.2.3", Some(32)).unwrap(), "10.1.2.3/32");
        assert_eq!(range("10.1.2.3", None).unwrap(), "0.0.0.0/0");
        assert_eq!(range("fd00::1", Some(128)).unwrap(), "fd00::1/128");
        assert_eq!(range("fd00::1", Some(16)).unwrap(), "fd00::/16");
        assert_eq!(range("10.1.2.3", Some(33)).unwrap_err().path, "prefix_len");
        assert_eq!(range("::", Some(300)).unwrap_err().path, "prefix_len");
        assert_eq!(range("x", None).unwrap_err().path, "address_prefix");
    }
}
