//! Tests of the whole, with the front-end of another implementation; and of what hostile guests say.

mod crashes;
mod disk;
mod driver;
mod hostile;
mod sessions;
