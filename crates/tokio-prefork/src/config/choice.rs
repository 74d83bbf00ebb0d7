//! The words of a setting with a few choices: reads and prints them.

/// Implements `Display` and `FromStr` for an enum with one word for each variant. `$what` is the type in the error of other words.
macro_rules! impl_choice {
    ($choice:ident, $what:literal, { $($name:literal => $variant:ident),+ $(,)? }) => {
        impl std::fmt::Display for $choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self {
                    $($choice::$variant => $name),+
                })
            }
        }

        impl std::str::FromStr for $choice {
            type Err = $crate::config::ParseValueError;

            /// # Errors
            ///
            /// Another word than those that `Display` prints, in any case.
            fn from_str(text: &str) -> Result<$choice, $crate::config::ParseValueError> {
                let choices = [$(($name, $choice::$variant)),+];
                $crate::config::parse_choice(text, $what, &choices)
            }
        }
    };
}
pub(crate) use impl_choice;

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Display};
    use std::str::FromStr;

    use crate::client::ProxyProtocol;
    use crate::config::{FdStore, HalfClosePolicy, MeasureDurations, ParseValueError, WhenFull};

    fn check<T>(choices: &[T])
    where
        T: FromStr<Err = ParseValueError> + Display + Debug + PartialEq + Copy,
    {
        for choice in choices {
            assert_eq!(choice.to_string().parse(), Ok(*choice));
        }
        assert!("maybe".parse::<T>().is_err());
    }

    #[test]
    fn every_choice_is_read_as_it_is_printed() {
        check(&[WhenFull::Wait, WhenFull::Close]);
        check(&[HalfClosePolicy::Finish, HalfClosePolicy::Probe, HalfClosePolicy::Cancel]);
        check(&[MeasureDurations::Auto, MeasureDurations::On, MeasureDurations::Off]);
        check(&[FdStore::Auto, FdStore::On, FdStore::Off]);
        use ProxyProtocol::{Auto, Off, V1, V2};
        check(&[Off, V1, V2, Auto]);
        assert_eq!(" Close ".parse(), Ok(WhenFull::Close));
    }
}
