//! Who is speaking: the only maker of proven identities (P5).
