//! What every provider that is reached by HTTP lets its user set.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::provider::http::{Auth, Http, Key, Settings, check_timeout};
use crate::provider::{Account, Limits};

type Change = Box<dyn FnOnce(&mut Limits) + Send>;

/// What has been set so far.
pub(super) struct Setup {
    pub(super) key: Key,
    pub(super) base_url: String,
    pub(super) name: Option<String>,
    pub(super) account: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) changes: Vec<Change>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) call_timeout: Option<Duration>,
    pub(super) stall_timeout: Option<Duration>,
}

impl Setup {
    pub(super) fn new(key: Key, base_url: &str) -> Self {
        Self {
            key,
            base_url: base_url.to_owned(),
            name: None,
            account: None,
            headers: Vec::new(),
            changes: Vec::new(),
            connect_timeout: None,
            call_timeout: None,
            stall_timeout: None,
        }
    }

    /// The client, the account and the limits, all checked.
    pub(super) fn build(
        self,
        name: &str,
        auth: Auth,
        announce: bool,
        headers: Vec<(String, String)>,
        mut limits: Limits,
    ) -> Result<(Http, Account, Limits)> {
        for change in self.changes {
            change(&mut limits);
        }
        if limits.items == 0 || limits.bytes == 0 {
            return Err(Error::invalid("limits", "a batch must have room for an item"));
        }
        if limits.endpoints.iter().any(|endpoint| !endpoint.starts_with('/')) {
            return Err(Error::invalid("limits.endpoints", "must begin with a slash"));
        }
        check_timeout("limits.create_timeout", limits.create_timeout)?;
        let name = self.name.unwrap_or_else(|| name.to_owned());
        check_word("name", &name)?;
        let mut settings = Settings::new(self.base_url, self.key, auth);
        settings.headers = headers.into_iter().chain(self.headers).collect();
        settings.announce = announce;
        settings.connect_timeout = self.connect_timeout.unwrap_or(settings.connect_timeout);
        settings.call_timeout = self.call_timeout.unwrap_or(settings.call_timeout);
        settings.stall_timeout = self.stall_timeout.unwrap_or(settings.stall_timeout);
        let http = Http::new(settings)?;
        let account = match self.account {
            Some(label) => {
                check_word("account", &label)?;
                let mut account = Account::new(name, http.place().as_str(), "");
                account.fingerprint = format!("{}|{}|{label}", account.provider, account.base_url);
                account
            }
            None => {
                let secret = http.key().map_err(|error| Error::invalid("key", error.message))?;
                Account::new(name, http.place().as_str(), secret.as_str().unwrap_or_default())
            }
        };
        Ok((http, account, limits))
    }
}

fn check_word(field: &str, word: &str) -> Result<()> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=64).contains(&word.len()) && word.bytes().all(is_good) {
        Ok(())
    } else {
        Err(Error::invalid(field, "must be 1 to 64 letters, digits, -, _ and ."))
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").field("key", &self.key).field("name", &self.name).finish_non_exhaustive()
    }
}

/// The setters that all builders have. Each has a field `setup`.
macro_rules! setters {
    () => {
        /// Sets where requests go: `https://host/prefix`. Plain `http://` and private addresses are as good: whoever runs a
        /// server at home knows where it is.
        pub fn base_url(mut self, url: impl Into<String>) -> Self {
            self.setup.base_url = url.into();
            self
        }

        /// Sets the name by which batches ask for this provider. Two of an engine need two names.
        pub fn name(mut self, name: impl Into<String>) -> Self {
            self.setup.name = Some(name.into());
            self
        }

        /// Names the account, so that it stays the same when its key changes. Defaults to a hash of the key: with another
        /// key, batches that are under way belong to an account that is not there.
        pub fn account(mut self, name: impl Into<String>) -> Self {
            self.setup.account = Some(name.into());
            self
        }

        /// Adds a header to each request.
        pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
            self.setup.headers.push((name.into(), value.into()));
            self
        }

        /// Changes the limits, from their defaults.
        pub fn limits(mut self, change: impl FnOnce(&mut Limits) + Send + 'static) -> Self {
            self.setup.changes.push(Box::new(change));
            self
        }

        /// Sets how long a connection may take. Defaults to 10 s.
        pub fn connect_timeout(mut self, timeout: Duration) -> Self {
            self.setup.connect_timeout = Some(timeout);
            self
        }

        /// Sets how long an ordinary call may take in all. Defaults to 60 s. A creation has a limit of its own:
        /// [`Limits::create_timeout`].
        pub fn call_timeout(mut self, timeout: Duration) -> Self {
            self.setup.call_timeout = Some(timeout);
            self
        }

        /// Sets how long an upload or the results may stand still. Defaults to 60 s. In all they may take any time.
        pub fn stall_timeout(mut self, timeout: Duration) -> Self {
            self.setup.stall_timeout = Some(timeout);
            self
        }
    };
}
pub(super) use setters;
