//! What is mounted: `HOST[:PORT][,HOST[:PORT]…][:/SUBDIR]`.

use crate::exit::usage;

/// The port of a master that names none.
pub const DEFAULT_PORT: u16 = 7000;

/// A mount source, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// `host:port` of each master.
    pub masters: Vec<String>,
    /// The directory to mount, from the root, without a leading slash; empty: the root itself.
    pub subdir: Vec<u8>,
}

/// Takes a mount source apart.
///
/// # Errors
///
/// What is wrong with `text`, as an error of use.
pub fn parse(text: &str) -> anyhow::Result<Source> {
    let (hosts, path) = match text.find(":/") {
        Some(at) => (&text[..at], &text[at + 2..]),
        None => (text, ""),
    };
    let masters = hosts.split(',').map(|host| address(host, text)).collect::<anyhow::Result<_>>()?;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(usage(format!("source {text:?}: \"..\" is not allowed in the directory to mount")));
    }
    Ok(Source { masters, subdir: parts.join("/").into_bytes() })
}

/// Returns `host:port` of one master, with the default port if there is none.
///
/// # Errors
///
/// What is wrong with it, as an error of use.
pub fn address(host: &str, whole: &str) -> anyhow::Result<String> {
    let wrong =
        |what: &str| usage(format!("source {whole:?}: {what}; HOST[:PORT][,HOST[:PORT]…][:/SUBDIR] is expected"));
    let (name, port) = match host.rsplit_once(':') {
        // An IPv6 address stands in brackets, or its colons would be taken for the port's.
        Some((name, port)) if !port.contains(']') => {
            let port = port.parse().ok().filter(|port: &u16| *port > 0);
            (name, port.ok_or_else(|| wrong(&format!("{host:?} has no valid port")))?)
        }
        _ => (host, DEFAULT_PORT),
    };
    if name.is_empty() || (name.contains(':') && !(name.starts_with('[') && name.ends_with(']'))) {
        return Err(wrong(&format!("{host:?} names no host")));
    }
    if name.contains(|character: char| character.is_whitespace() || character == '/') {
        return Err(wrong(&format!("{host:?} is no host name")));
    }
    Ok(format!("{name}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, masters: &[&str], subdir: &str) {
        let source = parse(text).expect(text);
        assert_eq!(source.masters, masters, "{text}");
        assert_eq!(source.subdir, subdir.as_bytes(), "{text}");
    }

    #[test]
    fn sources_are_taken_apart() {
        check("m", &["m:7000"], "");
        check("m:1", &["m:1"], "");
        check("m:/", &["m:7000"], "");
        check("m:1:/a/b/", &["m:1"], "a/b");
        check("m:1,n,o:3://a/./b", &["m:1", "n:7000", "o:3"], "a/b");
        check("[::1]:5:/x", &["[::1]:5"], "x");
        check("[::1]", &["[::1]:7000"], "");
    }

    #[test]
    fn wrong_sources_say_what_is_expected() {
        for text in ["", ":7000", "m:port", "m:0", "m:70000", "m,,n", "::1", "m:/a/../b", "a b", "/dev/sda1"] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains("source"), "{text}: {error}");
        }
    }
}
