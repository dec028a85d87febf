//! The PROXY protocol's header, versions 1 and 2 (HAProxy's proxy-protocol.txt; Envoy's
//! `envoy.filters.listener.proxy_protocol`).
//!
//! Pure: looks at the bytes received so far and keeps none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header of version 1, with its line end.
const MAX_V1: usize = 107;
const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const V2_HEADER: usize = 16;
/// A longer header is refused: Consul's sidecars send none, and it is held in the kernel for strangers.
pub const MAX_BYTES: usize = 16 * 1024;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole header of so many bytes, and the connection's ends (source, destination) where it says them.
    Header {
        /// To be taken from the connection.
        length: usize,
        /// `None`: those of the socket stand (`LOCAL`, `UNKNOWN`).
        ends: Option<(SocketAddr, SocketAddr)>,
    },
    /// The beginning of one; at least so many bytes are needed to see more.
    Need(usize),
    /// No header, or one that breaks the protocol; why, for a person.
    Malformed(&'static str),
}

/// Looks at the first `bytes` of a connection.
pub fn parse(bytes: &[u8]) -> Parsed {
    if begins(bytes, V2) {
        return v2(bytes);
    }
    if begins(bytes, V1) {
        return v1(bytes);
    }
    Parsed::Malformed("no PROXY header")
}

/// Whether `bytes` are the beginning of `signature`, or have it at theirs.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let common = bytes.len().min(signature.len());
    bytes[..common] == signature[..common]
}

fn v1(bytes: &[u8]) -> Parsed {
    let Some(end) = bytes.iter().take(MAX_V1).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_V1 {
            Parsed::Need(bytes.len() + 1)
        } else {
            Parsed::Malformed("a PROXY line of over 107 bytes")
        };
    };
    let line = bytes[..end]
        .strip_suffix(b"\r")
        .and_then(|line| std::str::from_utf8(line).ok());
    let Some(line) = line else {
        return Parsed::Malformed("a PROXY line that does not end in CRLF or is no text");
    };
    let length = end + 1;
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Parsed::Header { length, ends: None };
    }
    let words: Vec<&str> = words.collect();
    let ends = match (family, words.as_slice()) {
        (Some("TCP4"), [source, destination, from, to]) => ends::<Ipv4Addr>(source, destination, from, to),
        (Some("TCP6"), [source, destination, from, to]) => ends::<Ipv6Addr>(source, destination, from, to),
        _ => None,
    };
    match ends {
        Some(ends) => Parsed::Header {
            length,
            ends: Some(ends),
        },
        None => {
            Parsed::Malformed("a PROXY line that is not TCP4, TCP6 or UNKNOWN with two addresses and ports")
        }
    }
}

fn ends<I: std::str::FromStr + Into<IpAddr>>(
    source: &str,
    destination: &str,
    from: &str,
    to: &str,
) -> Option<(SocketAddr, SocketAddr)> {
    let address = |ip: &str| ip.parse::<I>().ok().map(Into::into);
    // No sign and no leading zeros, which `parse` would take.
    let port = |text: &str| {
        let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        plain.then(|| text.parse::<u16>().ok()).flatten()
    };
    Some((
        SocketAddr::new(address(source)?, port(from)?),
        SocketAddr::new(address(destination)?, port(to)?),
    ))
}

fn v2(bytes: &[u8]) -> Parsed {
    let Some(header) = bytes.get(..V2_HEADER) else {
        return Parsed::Need(V2_HEADER);
    };
    let (version_command, family) = (header[12], header[13]);
    let length = V2_HEADER + usize::from(u16::from_be_bytes([header[14], header[15]]));
    if version_command >> 4 != 2 {
        return Parsed::Malformed("a PROXY header of a version that is not 2");
    }
    if length > MAX_BYTES {
        return Parsed::Malformed("a PROXY header of over 16 KiB");
    }
    let Some(body) = bytes.get(V2_HEADER..length) else {
        return Parsed::Need(length);
    };
    let ends = match (version_command & 0xf, family) {
        (0, _) => return Parsed::Header { length, ends: None },
        (1, 0x11) => v2_ends::<4, Ipv4Addr>(body),
        (1, 0x21) => v2_ends::<16, Ipv6Addr>(body),
        (1, _) => return Parsed::Malformed("a PROXY header of another family or transport than TCP over IP"),
        _ => return Parsed::Malformed("a PROXY header with an unknown command"),
    };
    match ends {
        Some(ends) => Parsed::Header {
            length,
            ends: Some(ends),
        },
        None => Parsed::Malformed("a PROXY header too short for its addresses"),
    }
}

/// Two addresses, then two ports; what follows (TLVs) says nothing that is used.
fn v2_ends<const N: usize, I: From<[u8; N]> + Into<IpAddr>>(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (from, rest) = rest.split_first_chunk::<2>()?;
    let to = rest.first_chunk::<2>()?;
    Some((
        SocketAddr::new(I::from(*source).into(), u16::from_be_bytes(*from)),
        SocketAddr::new(I::from(*destination).into(), u16::from_be_bytes(*to)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: &[u8], ends: Option<(&str, &str)>) {
        for n in 0..bytes.len() {
            assert!(
                matches!(parse(&bytes[..n]), Parsed::Need(more) if more > n && more <= bytes.len()),
                "{n}"
            );
        }
        let ends = ends.map(|(source, destination)| (source.parse().unwrap(), destination.parse().unwrap()));
        let length = bytes.len();
        assert_eq!(parse(&[bytes, b"rest"].concat()), Parsed::Header { length, ends });
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2, &[0x20 | command, family], &length, body].concat()
    }

    #[test]
    fn both_versions_are_read_at_every_cut() {
        header(
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1024 443\r\n",
            Some(("10.0.0.1:1024", "10.0.0.2:443")),
        );
        header(b"PROXY TCP6 ::1 fe::2 1 2\r\n", Some(("[::1]:1", "[fe::2]:2")));
        header(b"PROXY UNKNOWN ffff:: x\r\n", None);
        let body = [10, 0, 0, 1, 10, 0, 0, 2, 4, 0, 1, 187, 3, 0, 1, 9];
        header(&v2(1, 0x11, &body), Some(("10.0.0.1:1024", "10.0.0.2:443")));
        header(&v2(0, 0, &[]), None);
        let mut six = [0; 36];
        (six[15], six[31], six[33], six[35]) = (1, 2, 3, 4);
        header(&v2(1, 0x21, &six), Some(("[::1]:3", "[::2]:4")));
    }

    #[test]
    fn what_breaks_it_is_refused() {
        let mut long = b"PROXY TCP4 ".to_vec();
        long.resize(MAX_V1, b'1');
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1024 443\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1024\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1024 0443\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1024 70000\r\n",
            b"PROXY TCP4 ::1 ::2 1024 443\r\n",
            b"PROXY UDP4 10.0.0.1 10.0.0.2 1024 443\r\n",
            &long,
            &v2(1, 0x11, &[0; 11]),
            &v2(1, 0x31, &[0; 216]),
            &v2(2, 0x11, &[0; 12]),
            &v2(1, 0x11, &[0; MAX_BYTES]),
            &[V2, &[0x11, 0x11, 0, 0]].concat(),
        ] {
            assert!(matches!(parse(bytes), Parsed::Malformed(_)), "{bytes:?}");
        }
    }
}
