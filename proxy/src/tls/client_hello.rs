//! What a ClientHello says before anything is answered: server name and protocols (RFC 8446, section
//! 4.1.2; RFC 6066, section 3; RFC 7301).
//!
//! Pure: looks at the bytes received so far and keeps none. It is no judge of TLS: what it cannot read is
//! left to the handshake, whose alert says more.

/// A larger ClientHello is refused. With a hybrid key share one has some 2 KiB; Envoy's limit is the same.
pub const MAX_BYTES: usize = 64 * 1024;

/// Content type of handshake records.
const HANDSHAKE: u8 = 22;
/// Handshake type of a ClientHello.
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const ALPN: u16 = 16;

/// A record's header: type, version, length.
const RECORD_HEADER: usize = 5;
/// A handshake message's header: type, length.
const MESSAGE_HEADER: usize = 4;
/// The longest plaintext of a record.
const MAX_RECORD: usize = 16 * 1024;

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Lower case.
    pub server_name: Option<String>,
    /// In the order of preference. Those that are no UTF-8 are left out: nothing can be configured
    /// that equals them.
    pub alpn: Vec<String>,
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspected {
    /// A whole ClientHello.
    Hello(ClientHello),
    /// The beginning of one; at least so many bytes from the start of the connection are needed to see
    /// more. Always more than were given, at most [`MAX_BYTES`].
    Need(usize),
    /// No TLS, or no ClientHello that can be read.
    NotTls,
    /// A ClientHello of more than [`MAX_BYTES`].
    TooLarge,
}

/// Looks at the first `bytes` of a connection.
pub fn inspect(bytes: &[u8]) -> Inspected {
    let mut message = Vec::new();
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        // Plaintext is known by what is there, not only once five bytes are.
        let version_is_tls = rest.get(1).is_none_or(|major| *major == 3);
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE) || !version_is_tls {
            return Inspected::NotTls;
        }
        let Some(header) = rest.get(..RECORD_HEADER) else {
            return need(at + RECORD_HEADER);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_RECORD {
            return Inspected::NotTls;
        }
        let end = at + RECORD_HEADER + length;
        let payload = &bytes[(at + RECORD_HEADER).min(bytes.len())..end.min(bytes.len())];
        message.extend_from_slice(payload);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Inspected::NotTls;
        }
        if let Some(header) = message.get(..MESSAGE_HEADER) {
            let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
            if length > MAX_BYTES - MESSAGE_HEADER - RECORD_HEADER {
                return Inspected::TooLarge;
            }
            // Not before its record is whole, which the handshake waits for too.
            if end <= bytes.len()
                && let Some(body) = message.get(MESSAGE_HEADER..MESSAGE_HEADER + length)
            {
                return body_of(body).map_or(Inspected::NotTls, Inspected::Hello);
            }
        }
        if end > bytes.len() {
            return need(end);
        }
        at = end;
    }
}

fn need(bytes: usize) -> Inspected {
    if bytes > MAX_BYTES {
        return Inspected::TooLarge;
    }
    Inspected::Need(bytes)
}

/// Reads the body of a ClientHello.
fn body_of(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    // legacy_version and random.
    reader.take(2 + 32)?;
    let session = reader.u8()?;
    reader.take(session.into())?;
    let suites = reader.u16()?;
    reader.take(suites.into())?;
    let compressions = reader.u8()?;
    reader.take(compressions.into())?;
    let mut hello = ClientHello::default();
    if reader.0.is_empty() {
        // TLS 1.2 knows ClientHellos without extensions.
        return Some(hello);
    }
    let mut extensions = reader.vector()?;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector()?;
        match kind {
            SERVER_NAME => hello.server_name = server_name(content)?,
            ALPN => hello.alpn = alpn(content)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(mut content: Reader<'_>) -> Option<Option<String>> {
    let mut names = content.vector()?;
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vector()?;
        if kind == HOST_NAME {
            let name = std::str::from_utf8(name.0).ok()?;
            return Some((!name.is_empty()).then(|| name.to_ascii_lowercase()));
        }
    }
    Some(None)
}

fn alpn(mut content: Reader<'_>) -> Option<Vec<String>> {
    let mut names = content.vector()?;
    let mut found = Vec::new();
    while !names.0.is_empty() {
        let length = names.u8()?;
        let name = names.take(length.into())?;
        found.extend(std::str::from_utf8(name).ok().map(str::to_owned));
    }
    Some(found)
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What a length of two bytes stands before.
    fn vector(&mut self) -> Option<Reader<'a>> {
        let length = self.u16()?;
        self.take(length.into()).map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A ClientHello as rustls sends it.
    fn hello(name: &'static str, alpn: &[&str]) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = rustls::pki_types::ServerName::try_from(name).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn asked(name: Option<&str>, alpn: &[&str]) -> Inspected {
        Inspected::Hello(ClientHello {
            server_name: name.map(str::to_owned),
            alpn: alpn.iter().map(|&name| name.to_owned()).collect(),
        })
    }

    /// The same handshake message in records of `size` bytes.
    fn fragmented(hello: &[u8], size: usize) -> Vec<u8> {
        let pieces = hello[RECORD_HEADER..].chunks(size);
        pieces
            .flat_map(|piece| {
                let mut record = vec![HANDSHAKE, 3, 1];
                record.extend(u16::try_from(piece.len()).unwrap().to_be_bytes());
                record.extend(piece);
                record
            })
            .collect()
    }

    #[test]
    fn names_and_protocols_are_found() {
        let bytes = hello("Web.Example", &["h2", "http/1.1"]);
        assert_eq!(inspect(&bytes), asked(Some("web.example"), &["h2", "http/1.1"]));
        // An address is no server name.
        assert_eq!(inspect(&hello("10.0.0.1", &[])), asked(None, &[]));
    }

    #[test]
    fn every_beginning_asks_for_more_and_gets_there() {
        for bytes in [hello("a.b", &["x"]), fragmented(&hello("a.b", &["x"]), 7)] {
            for n in 0..bytes.len() {
                match inspect(&bytes[..n]) {
                    Inspected::Need(more) => assert!(more > n && more <= bytes.len(), "{n} {more}"),
                    other => panic!("{n}: {other:?}"),
                }
            }
            assert_eq!(inspect(&bytes), asked(Some("a.b"), &["x"]));
        }
    }

    /// What was asked to be waited for is never more than what decides.
    #[test]
    fn a_record_that_goes_on_behind_the_hello_is_waited_for() {
        let mut bytes = hello("a.b", &[]);
        let length = bytes.len() - RECORD_HEADER;
        let longer = u16::try_from(length + 9).unwrap().to_be_bytes();
        bytes[3..RECORD_HEADER].copy_from_slice(&longer);
        assert_eq!(inspect(&bytes), Inspected::Need(bytes.len() + 9));
        bytes.extend([0; 9]);
        assert_eq!(inspect(&bytes), asked(Some("a.b"), &[]));
    }

    #[test]
    fn other_protocols_are_known_by_their_first_bytes() {
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            b"\x16GET",
            b"\x15\x03\x03\0\x02",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\0\x01\x02",
        ] {
            assert_eq!(inspect(bytes), Inspected::NotTls, "{bytes:?}");
        }
        assert_eq!(inspect(b"\x16\x03\x01\0\x04\x01\x01\0\0"), Inspected::TooLarge);
    }

    #[test]
    fn a_broken_body_is_no_hello() {
        let mut bytes = hello("a.b", &[]);
        // The cipher suites claim to reach beyond the message.
        let at = RECORD_HEADER + MESSAGE_HEADER + 34 + 1 + 32;
        bytes[at] = 0xff;
        assert_eq!(inspect(&bytes), Inspected::NotTls);
    }
}
