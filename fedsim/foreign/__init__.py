"""Any Flower app on virtual time. Knows apps, fleets and how to run them; knows nothing of scenarios' models, data and training."""
