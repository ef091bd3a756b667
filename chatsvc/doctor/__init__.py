"""The doctor: looks at Kafka, the servers and this machine, and says what is wrong."""
