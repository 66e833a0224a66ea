"""How rounds scale on two cores, and the model that `fedjax-rec plan` predicts their time with."""
