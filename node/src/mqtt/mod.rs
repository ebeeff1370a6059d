//! MQTT: listeners, and a task for each connection.
