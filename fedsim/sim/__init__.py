"""Virtual time: the clients' world as SimPy processes, and Flower's Grid on top of it. The only simpy."""
