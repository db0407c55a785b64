//! The doorman, who decides whom the HTTP client may reach.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Error, Timeout};

use crate::builtin::callback::address::is_public;
use crate::model::callback::{Host, Target};

/// How many addresses of one name are tried: as many as the client has room for.
const MAX_ADDRESSES: usize = 16;

/// Knows the addresses of names.
pub(crate) trait Names: Send + Sync {
    /// Looks a name up. Gives up after this time, with an error of the kind `TimedOut`.
    fn look_up(&self, name: &str, within: Duration) -> io::Result<Vec<IpAddr>>;
}

/// Why a receiver is not even tried. It says no address, for those behind a name may be a secret of the network.
#[derive(Debug)]
pub(super) struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host has an address that is not public")
    }
}

impl std::error::Error for Refused {}

/// Finds the addresses of a receiver, and refuses all of them if one is not public. The client connects to what is
/// answered here and asks no second time, so a name whose addresses change in between gains nothing.
pub(super) struct Doorman {
    pub(super) names: Arc<dyn Names>,
    pub(super) private_addresses: bool,
}

impl Doorman {
    fn admit(&self, target: &Target, within: Duration) -> Result<Vec<SocketAddr>, Error> {
        let addresses = match &target.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.names.look_up(name, within).map_err(|error| match error.kind() {
                io::ErrorKind::TimedOut => Error::Timeout(Timeout::Resolve),
                _ => {
                    log::debug!("no address for a callback to {name}: {error}");
                    Error::HostNotFound
                }
            })?,
        };
        if addresses.is_empty() {
            return Err(Error::HostNotFound);
        }
        if let Some(address) = addresses.iter().find(|address| !self.private_addresses && !is_public(**address)) {
            log::debug!("refused a callback to {:?}: {address} is not public", target.host);
            return Err(Error::Other(Box::new(Refused)));
        }
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, target.port)).collect())
    }
}

impl Resolver for Doorman {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let target = Target::parse(&uri.to_string()).map_err(|error| Error::BadUri(error.to_string()))?;
        let mut admitted = self.empty();
        for address in self.admit(&target, *timeout.after)?.into_iter().take(MAX_ADDRESSES) {
            admitted.push(address);
        }
        Ok(admitted)
    }
}

impl fmt::Debug for Doorman {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorman").field("private_addresses", &self.private_addresses).finish_non_exhaustive()
    }
}
