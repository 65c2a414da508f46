pub fn main(_: &[String]) {}
