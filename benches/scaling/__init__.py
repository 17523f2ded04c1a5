"""How many requests one, three or a thousand replicas answer: measured where there are few, simulated where many."""
