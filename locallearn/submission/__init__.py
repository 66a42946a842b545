"""Jobs on a Ray cluster: what is submitted, the cluster that is asked, and the results that come back."""
