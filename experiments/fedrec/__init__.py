"""FedRec and FedRec++ on MovieLens 100K, against their authors' logs."""
