//! A simulated thermometer: a real MQTT client over TLS that replays recorded temperatures.
