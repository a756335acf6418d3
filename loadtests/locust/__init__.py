"""The Locust suite. `locustfile` is a script of Locust's: importing it patches the process for gevent."""
