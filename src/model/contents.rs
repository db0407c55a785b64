//! Debug lines without an application's data: of that they say how much it is, since they end up in logs.

use std::fmt;

use serde_json::Value;
use serde_json::value::RawValue;

/// An application's data.
pub(crate) trait Contents {
    /// Writes how much it is.
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// Has a debug line that tells how much it is.
pub(crate) struct Told<'a, C: ?Sized>(pub(crate) &'a C);

impl<C: Contents + ?Sized> fmt::Debug for Told<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.tell(f)
    }
}

impl Contents for Vec<u8> {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Contents for RawValue {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.get().len())
    }
}

impl Contents for str {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Contents for Value {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.to_string().len())
    }
}

impl<C: Contents + ?Sized> Contents for &C {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).tell(f)
    }
}

impl<C: Contents + ?Sized> Contents for Box<C> {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).tell(f)
    }
}

impl<C: Contents> Contents for Option<C> {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Some(contents) => contents.tell(f),
            None => f.write_str("None"),
        }
    }
}

/// What did not serialize, with the reason.
impl<C: Contents> Contents for Result<C, String> {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ok(contents) => contents.tell(f),
            Err(problem) => write!(f, "Err({problem:?})"),
        }
    }
}

/// Gives a struct a debug line that shows its fields up to the semicolon, and tells of those after it how much they are. Each
/// is named, so that none is forgotten which is added.
macro_rules! debug_with_sizes {
    ($name:ident $(<$life:lifetime>)? { $($shown:ident),*; $($told:ident),+ }) => {
        impl $(<$life>)? std::fmt::Debug for $name $(<$life>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let Self { $($shown,)* $($told),+ } = self;
                f.debug_struct(stringify!($name))
                    $(.field(stringify!($shown), $shown))*
                    $(.field(stringify!($told), &$crate::model::contents::Told($told)))+
                    .finish()
            }
        }
    };
}
pub(crate) use debug_with_sizes;
