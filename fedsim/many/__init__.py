"""Many runs: side by side in processes, read where they are done. Knows no question that they are to answer."""
