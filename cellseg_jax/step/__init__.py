"""What is compiled: the train and evaluation steps, their state, batches and memory."""
